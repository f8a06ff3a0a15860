"""From a picture of a face to numbers: its w+ (e4e) and its identity (IR-SE50), both on one IR-SE body."""

from attention.inversion.e4e import Encoder4Editing, load_e4e
from attention.inversion.irse import IRSE50, face_crop, identity_similarity, load_recogniser

__all__ = ["IRSE50", "Encoder4Editing", "face_crop", "identity_similarity", "load_e4e", "load_recogniser"]
