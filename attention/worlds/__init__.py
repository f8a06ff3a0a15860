"""The worlds that the method runs in: what they are made of, what is known of them, and their settings."""
