"""The published world: StyleGAN2 of FFHQ, OpenAI's CLIP and e4e, whose files are downloaded (`attention.download`)."""

from attention.files.published import E4E_FILE, INSTALLED, ROOT, SHIPPED, WEIGHTS
from attention.worlds.base import Part, WorldEntry
from attention.worlds.concepts import EDIT_PROMPTS

PLACES = ("tanned skin", "narrow nose", "narrow eyes", "thin eyebrows", "wearing a pair of earrings", "pink lipsticks",
          "grey hair")                                                      # the published attention prompts
# The published corpus: captions of real faces once somebody has put them there, till then the sample that ships.
FOLDER = SHIPPED.parent / "shipped_captions" if INSTALLED else ROOT / "celeba-caption"
CAPTIONS = FOLDER if FOLDER.is_dir() else None              # the package may have been copied without it
PROMPTS = tuple(dict.fromkeys(PLACES + EDIT_PROMPTS))       # a step needs as many as it has prompts, all different

FFHQ = WorldEntry(
    name="ffhq", generator=WEIGHTS / "stylegan2-ffhq-config-f.pt", prompts=PROMPTS,
    clip=Part("released", WEIGHTS / "ViT-B-32.pt"), encoder=Part("e4e", WEIGHTS / E4E_FILE),
    words="faces", recognised=True, places=PLACES, captions=CAPTIONS)
