"""Measure an editor on real, aligned pictures by the published protocol, and by what that protocol leaves out.

    python -m attention.evaluate_real --run runs/ffhq --photos CelebA-HQ-img --masks CelebAMask-HQ-mask-anno
    python -m attention.evaluate_real --run runs/ffhq --photos photos --prompts "grey hair; red lipstick" --no_fid

Every picture is inverted and edited by every prompt. Writes metrics.json, table.md and edits.png to RUN/real or --results:
  FID, KID, IS     by torch-fidelity: edits against real pictures, the inversions against them (what edits start from), and
                   the published variant, edits against their own originals, which doing nothing wins
  CLIP             share of edits that are nearer to the text than their source, and the mean gain in cosine
  identity         ArcFace cosine with the inversion and with the photo
  IoU              of the gated attention with the labelled part, the mean over pictures
  macro Jaccard    as published, with --prompts published: of each of the eight parts the IoU over the pixels of all
                   pictures together, and the mean of these; one figure of the run
  MSE, PSNR, SSIM, LPIPS    outside the labelled part, grown by 1/64 of the side, against the inversion (what the edit
                   changed) and against the photo (what was lost in all)
Labels (--masks) are those of CelebAMask-HQ; a picture that lacks the part of a prompt does not count there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.config import RealConfig, parse_config
from attention.errors import exit_with_message
from attention.extras import need


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse, invert, edit, measure, write; returns the path of metrics.json."""
    config = parse_config(RealConfig, argv, __doc__)
    need("metrics", "evaluation")

    from attention.evaluation.photos import evaluate
    return evaluate(config)


if __name__ == "__main__":
    exit_with_message(main)
