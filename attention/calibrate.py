"""Find out what suits each text of a trained editor, and write it into its file.

    python -m attention.calibrate --run runs/faces

Training gives every text the same gate and the same strength, but one gate cuts short what a text attends to weakly and
lets in more than another means, and at one strength some changes overshoot and others fall short: brows become bars while
red hair hardly shows. Here, on generated faces, other ones than those of the evaluation, every prompt and every name of a
part first gets the offset of its attention with the narrowest gate that overlaps the true part nearly as well as the best;
a prompt whose part's name finds the part better is read as that name there. Then every prompt edits the faces at several
shares of the usual strength; the least is taken at which success (attention/evaluate.py says what that is) comes within
--slack of its best. This is done with all edited layers, and without the coarse ones, which draw shapes; as many are left
out as success allows. All become a part of the editor: RUN/editor.safetensors is written again, its weights as they were,
and a coverage of 0.8 and a strength of 0.1 then mean for every text what suits it. Run again, it begins anew; --forget
takes it away, --show prints it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attention.config import CalibrateConfig, parse_config
from attention.errors import exit_with_message
from attention.extras import need


def main(argv: Sequence[str] | None = None) -> Path:
    """Parse, measure, write; returns the path of the editor's file."""
    config = parse_config(CalibrateConfig, argv, __doc__)
    need("metrics", "calibration")

    from attention.evaluation.calibration import calibrate
    return calibrate(config)


if __name__ == "__main__":
    exit_with_message(main)
