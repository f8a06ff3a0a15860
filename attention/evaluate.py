"""Measure an editor on generated faces of which the truth is known.

    python -m attention.evaluate --run runs/drawn
    python -m attention.evaluate --run runs/drawn --strengths 0.1       # no sweep, a quarter of the time

Every prompt of the world edits the same unseen faces, at every strength of the sweep. After a stop, the same command goes
on where it was. Writes RUN/metrics.json, .md (the table, at --strength, which is also printed), RUN/edits.png and
RUN/sweep.png. Pictures count as a screen shows them:
  success       share of the faces that lacked the attribute for which the attribute reader now sees it and, of colours and
                noses, at least 60 % of the part's pixels show it ("by reader": without asking the pixels)
  collateral    share of a face's other attributes that the reader sees changed, of those that were plainly true or false,
                or that lost 15 % of their pixels: glasses, earrings, a beard, rosy cheeks
  PSNR, SSIM,   of edit against source outside the prompt's true part, grown by 2 px, the inside taken from the source;
    MSE, LPIPS    pixels in [0, 1]; LPIPS where the weights of VGG-16 are here
  largest out   largest change of a channel there, mean over faces
  in / out      mean absolute change inside and outside the true part, pictures in [-1, 1]
  IoU           of the gated mask (before its blur) with the true part, where = the prompt; again with the part's name
  distance      how far the face is from its source for the reader: photographs in units of dlib's recogniser, where
                  0.6 is another person; drawings in shares of the range of place, width and height
  identity      share of faces that the reader takes for the same face
  CLIP gain     rise of the cosine similarity to the prompt
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.config import EvaluateConfig, parse_config
from attention.errors import exit_with_message
from attention.extras import need


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse, measure every prompt at every strength, write; returns the path of metrics.json."""
    config = parse_config(EvaluateConfig, argv, __doc__)
    need("metrics", "evaluation")

    from attention.evaluation.generated import evaluate
    return evaluate(config)


if __name__ == "__main__":
    exit_with_message(main)
