"""Every option, its default and its bounds, once: a field of a Config is a flag, and pydantic checks it.

    class Example(Config):
        batch_size: int = option(8, "prompts a step", min=2)
        target: Literal["text", "image"] = option("text", "what drives the edit")
        run: Path = option(..., "folder to write to")               # required

    config = parse_config(Example, ["--batch_size", "16", "--run", "runs/a"], "What --help begins with.")

pydantic-settings makes the command line and pydantic the checks. By hand are only the sentences in which a user reads what
was wrong (theirs are several lines and speak of Python), the published spelling of switches (--no_NAME), hints at the flag
that was meant, and published flags that change nothing here.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import AliasChoices, Field, ValidationError, ValidationInfo, create_model, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from attention.errors import UserError
from attention.files.published import INCEPTION_FILE, RECOGNISER_FILE, VGG_FILE, WEIGHTS
from attention.files.reading import shown
from attention.method.defaults import COVERAGE, STRENGTH
from attention.method.losses import ATTENTION_FROZEN_UNTIL, TERMS
from attention.processes import check_environment

KINDS = {"int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "a switch", "path": "a path",
         "string": "a text"}
DEVICE = "cpu, cuda, cuda:N, or auto: a GPU where there is one"
CKPT = "where the generator that the editor was trained on lies now; default: where the run says"
SEED, STEPS = 2**63 - 1, 2**31 - 1          # the largest: what torch takes as a seed, more steps than anybody trains
FACES, PICTURES, PROMPTS = 100_000, 10_000_000, 65_536      # the largest: of a measurement, of a folder, of a step
LAYERS, WEIGHT = 100, 1e6                   # the largest: more conv layers than any generator has; of a loss
TRUST = "run a CLIP archive (a program) that is not OpenAI's by its hash"
Precision = Literal["fp32", "bf16", "fp16"]


class Config(BaseSettings):
    """Options whose fields are flags; frozen, checked when made, and never read from the environment.

    Raises:
        UserError: an unknown option, a missing or a wrong value: one sentence that names the flag.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False,
                                      protected_namespaces=(), cli_implicit_flags=True, cli_avoid_json=True,
                                      cli_hide_none_type=True, cli_parse_none_str="(none)")
    # Published flags that are no options here: by name, what takes their place.
    refused: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError(_sentence(type(self), error.errors()[0])) from None

    @classmethod
    def settings_customise_sources(cls, settings_cls: type[BaseSettings], init_settings: Any,
                                   *others: Any, **more: Any) -> tuple[Any, ...]:
        return (init_settings,)

    @field_validator("*", mode="before")
    @classmethod
    def _names_something(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty path would be the folder that one is in; a text that says nothing names no checkpoint and no device."""
        assert info.field_name is not None
        if value == "" and not _rule(cls.model_fields[info.field_name], "blank"):
            raise PydanticCustomError("blank", "a value")
        return value

    def replaced(self, **values: Any) -> Any:
        """The same options but for these, checked again."""
        return type(self)(**{**dict(self), **values})


Options = TypeVar("Options", bound=Config)


def option(default: Any, help: str, *, min: float | None = None, max: float | None = None, published: str | None = None,
           idle: str | None = None, world: bool = True, blank: bool = False) -> Any:
    """A field of a Config.

    Args:
        default: `...` makes the flag required.
        min, max: bounds of a number, included.
        published: another spelling of the flag, as the published program has it.
        idle: why a published flag changes nothing here, which is printed when it is given; the value is not kept.
        world: whether a world may have a default of its own for it.
        blank: whether an empty text is a value.
    """
    limits = [f"at least {min}"] * (min is not None) + [f"at most {max}"] * (max is not None)
    return Field(default, description=f"{help} ({' and '.join(limits)})" if limits else help, ge=min, le=max,
                 validation_alias=AliasChoices(published) if published else None,
                 exclude=True if idle else None,
                 json_schema_extra={"limits": " and ".join(limits), "idle": idle or "", "world": world and not idle,
                                    "blank": blank or ""})


def parse_config(cls: type[Options], argv: Sequence[str] | None, description: str | None = None,
                 layers: Callable[[type[Options], Mapping[str, Any]], Mapping[str, Any]] | None = None) -> Options:
    """Make a Config from command-line flags.

    Every field is a flag of its name, underscores kept; a switch also has --no_NAME.

    Args:
        argv: the arguments without the program's name; None takes those of this process.
        description: shown by --help as it is, usually the module's docstring.
        layers: (cls, what the flags say) -> values that take the place of the fields' own defaults, where no flag says
            otherwise; --help shows them. See `worlds.registry.world_defaults`.
    Raises:
        UserError: an unknown flag, a missing or a wrong value; the message names the flag and what it expects. Or an
            environment that says nonsense of several processes.
    """
    words = [re.sub(r"^--no_", "--no-", word) for word in (sys.argv[1:] if argv is None else argv)]
    _tell_contradictions(cls, words)
    given = _given(cls, [word for word in words if word not in ("-h", "--help")], description)
    defaults = dict(layers(cls, given)) if layers else {}
    if "-h" in words or "--help" in words:
        _given(_with_defaults(cls, defaults), ["--help"], description)
    check_environment()
    for name, field in cls.model_fields.items():
        if name in given and _rule(field, "idle"):
            print(f"--{name} changes nothing here: {_rule(field, 'idle')}", file=sys.stderr)
    return cls(**{**defaults, **given})


def _tell_contradictions(cls: type[Config], words: Sequence[str]) -> None:
    """Say which value counts where a flag is given twice: the last, so that a script's own can be followed by others.

    Raises:
        UserError: a switch is given both ways, which nobody can mean.
    """
    spelled = {alias: name for name, field in cls.model_fields.items() for alias in _spellings(name, field)}
    said: dict[str, str] = {}                                   # field -> its last value
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        name = spelled.get(re.sub("^--(no-)?", "", flag)) if flag.startswith("--") else None
        if name is None:
            continue
        switch = cls.model_fields[name].annotation is bool
        value = flag.replace("--no-", "--no_") if switch else value if equals else "".join(words[place + 1:place + 2])
        before = said.get(name, value)
        if switch and before.startswith("--no_") != value.startswith("--no_"):
            raise UserError(f"{before} and {value} contradict each other; give one of them")
        if not switch and before != value:
            print(f"--{name} is given twice: {shown(value, 80)} counts, {shown(before, 80)} does not", file=sys.stderr)
        said[name] = value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


def _given(cls: type[Config], words: Sequence[str], description: str | None) -> dict[str, Any]:
    """What the flags say, by field, as text; `--help` prints and ends the program."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    rest: list[str] = []

    def parse(parser: argparse.ArgumentParser, args: list[str], namespace: Any = None) -> argparse.Namespace:
        found, unknown = parser.parse_known_args(args)
        rest.extend(unknown)
        return found

    source: CliSettingsSource[Any] = CliSettingsSource(cls, root_parser=parser, parse_args_method=parse,
                                                       cli_parse_args=list(words))
    if rest:
        raise UserError(_unknown_flag(rest[0], cls))
    spelled = {alias: name for name, field in cls.model_fields.items() for alias in _spellings(name, field)}
    return {spelled[name]: value for name, value in source().items()}


def _spellings(name: str, field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    return [name, *(str(choice) for choice in alias.choices)] if isinstance(alias, AliasChoices) else [name]


def _with_defaults(cls: type[Config], defaults: Mapping[str, Any]) -> type[Config]:
    """The same options with other defaults, for --help."""
    fields: dict[str, Any] = {}
    for name, value in defaults.items():
        field = cls.model_fields[name]
        fields[name] = (field.annotation, FieldInfo.merge_field_infos(field, default=value))
    return create_model(cls.__name__, __base__=cls, __doc__=cls.__doc__, **fields)


def settings_of(cls: type[Config]) -> dict[str, FieldInfo]:
    """The fields for which a world may have defaults of its own."""
    return {name: field for name, field in cls.model_fields.items()
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra["world"]}


def _rule(field: FieldInfo, name: str) -> str:
    extra = field.json_schema_extra
    return str(extra.get(name, "")) if isinstance(extra, dict) else ""


def _sentence(cls: type[Config], error: Mapping[str, Any]) -> str:
    """What pydantic found wrong with one field, as a user reads it."""
    kind, value = error["type"], error.get("input")
    name = next((own for own, field in cls.model_fields.items() if error["loc"][0] in _spellings(own, field)),
                str(error["loc"][0]))
    if kind == "missing":
        return f"--{name} is required; see --help"
    if kind == "extra_forbidden":
        return _unknown_flag(f"--{name}", cls)
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"--{name} is {shown(value, 80)}, expected one of {', '.join(words)}"
    found = value if kind in ("greater_than_equal", "less_than_equal") else repr(value)
    return f"--{name} is {shown(found, 80)}, expected {expected(cls.model_fields[name], error)}"


def expected(field: FieldInfo, error: Mapping[str, Any]) -> str:
    """What a value of a field should have been, in words."""
    if error["type"] in ("greater_than_equal", "less_than_equal"):
        return _rule(field, "limits")
    return KINDS.get(error["type"].split("_")[0], error["msg"])


def _unknown_flag(word: str, cls: type[Config]) -> str:
    flags, word = [f"--{name}" for name in cls.model_fields], shown(word, 80)
    published = word.partition("=")[0].removeprefix("--").replace("-", "_")
    if published in cls.refused:
        return f"{word.partition('=')[0]} is a flag of the published program: {cls.refused[published]}"
    if not word.startswith("-"):
        return f"{word!r} belongs to no flag; every value follows its flag, as in {flags[0]} VALUE (see --help)"
    close = difflib.get_close_matches(word, flags, 1)
    return f"{word} is not a flag here; " + (f"did you mean {close[0]}?" if close else "see --help for the flags")


class WorldConfig(Config):
    """Options that regions and training share: which generator, which layer, where to write.

    A flag counts before the recipe, the recipe before the world's own settings, those before the defaults here.
    """

    recipe: Literal["paper", "released"] = option("paper", "paper (all terms, attention learns from 15 %) or released (as "
                                                           "published)", world=False)
    domain: str = option("drawn", "drawn, ffhq, or a TOML file that describes a world; with --ckpt alone ffhq", world=False)
    run: Path = option(Path("runs/drawn"), "folder to write to: runs/DOMAIN", published="results_dir", world=False)
    ckpt: Path | None = option(None, "another generator's weights than the world's", world=False)
    stylegan_size: int | None = option(None, "must be the generator's, which is read from its weights", min=8, max=2**14,
                                       world=False)
    channel_multiplier: int | None = option(None, "must be the generator's, which is read from its weights", min=1,
                                            max=64, world=False)
    truncation: float | None = option(None, "of sampled faces, toward the mean face: that of the world", min=0, max=1,
                                      world=False)
    attention_layer: int = option(13, "conv layer to blend at, counted from 1", min=1, max=LAYERS)
    cluster_num: int = option(20, "number of regions K", min=1, max=65_536)
    overwrite: bool = option(False, "replace the run that --run holds already", world=False)
    device: str = option("auto", DEVICE, world=False)


# Flags of the published program that both of its commands define; docs/differences.md has the table of all.
NO_LATENTS = "faces are drawn from --seed, and --truncation says how far from the mean face"
MACHINES = ("processes are started by torchrun, on several machines as in torchrun --nnodes 2 --nproc_per_node 8 "
            "--rdzv_backend c10d --rdzv_endpoint HOST:29500 -m attention.run_attention")
NO_RECOGNISER = "no loss asks who a face is, there as here; attention.evaluate_real does, with --arcface"


class ClusterConfig(WorldConfig):
    """Options of clustering_feature.py."""

    refused: ClassVar[Mapping[str, str]] = {
        "latent_path": NO_LATENTS, "gpu_id": "regions are found on one device, as in --device cuda:0",
        **dict.fromkeys(("world_size", "rank", "dist_url", "dist_backend", "multiprocessing_distributed"),
                        "regions are found in one process; leave it out")}
    step: int = option(20, "batches of faces", min=1, max=100_000, world=False)
    batch_size: int = option(5, "faces a batch", min=1, max=1000, world=False)
    enlarge: int = option(1, "enlarge feature maps before fitting (the published program: 2)", min=1, max=8)
    position_weight: float = option(1.0, "weight of the position planes", min=0, max=1e6)
    seed: int = option(42, "of faces and k-means", min=0, max=SEED, world=False)
    description: str | None = option(None, "published", idle="the regions file is named by --run", blank=True)
    description_dir: str | None = option(None, "published", idle="regions need no texts")
    work_in_stylespace: bool = option(False, "published", idle="features do not depend on it")
    save_intermediate_image_every: str | None = option(None, "published", idle="one picture is written, at the end")
    amp: bool = option(False, "published", idle="regions are found in full precision, there as here")
    ir_se50_weights: str | None = option(None, "published", idle=NO_RECOGNISER)
    lr: str | None = option(None, "published", idle="nothing is trained, there as here")
    lr_rampup: str | None = option(None, "published", idle="nothing is trained, there as here")
    lambda_ess: str | None = option(None, "published", idle="nothing is trained, there as here")
    lambda_sec: str | None = option(None, "published", idle="nothing is trained, there as here")
    lambda_id: str | None = option(None, "published", idle="nothing is trained, there as here")
    lambda_delta: str | None = option(None, "published", idle="nothing is trained, there as here")


if TYPE_CHECKING:
    LossWeights = WorldConfig
else:                   # a weight for every loss term, see method/losses.py
    LossWeights = create_model("LossWeights", __base__=WorldConfig, __module__=__name__, **{
        term.flag: (float, option(term.weight, term.help, min=0, max=WEIGHT)) for term in TERMS.values()})


class TrainConfig(LossWeights):
    """Options of run_attention.py."""

    refused: ClassVar[Mapping[str, str]] = {
        "latent_path": NO_LATENTS, **dict.fromkeys(("world_size", "rank", "dist_url", "dist_backend"), MACHINES)}

    def weight(self, term: str) -> float:
        """Of a loss term, a key of TERMS."""
        return float(getattr(self, TERMS[term].flag))

    clip_model: str | None = option(None, "another CLIP: a name that open_clip knows, or a file of OpenAI's", world=False)
    trust: bool = option(False, TRUST, world=False)
    cluster_path: Path = option(Path("runs/drawn/regions.safetensors"), "regions (or the authors' .pkl): those of --run",
                                world=False)
    cluster_layer: int = option(13, "conv layer of the regions, counted from 1: that of --attention_layer", min=1,
                                max=LAYERS, world=False)
    init: str | None = option(None, "start from the weights, regions and calibration of an editor: a run folder, its "
                                    "editor.safetensors, or the name of a shipped one", world=False)
    step: int = option(10_000, "training steps; may grow when a run goes on", min=1, max=STEPS)
    batch_size: int = option(8, "prompts a step and process; at least 2 in all processes together", min=1,
                             max=PROMPTS)
    micro_batch: int = option(8, "prompts at once, --batch_size of them; fewer need less memory and a second forward pass",
                              min=1, max=PROMPTS, world=False)
    lr: float = option(0.01, "Adam's learning rate at its height", min=0, max=100)
    captions: Path | None = option(None, "corpus to draw prompts from instead of the world's own",
                                   published="description_dir", world=False)
    description: str | None = option(None, "prompt that sample sheets show beside the others", world=False, blank=True)
    own_description_dir: Path | None = option(None, "text file of the prompts that sample sheets show, one a line, "
                                                    "in place of the world's own", world=False)
    attention_description: str | None = option(None, "place that all prompts of the training attend to, in place of their "
                                                     "own", world=False)
    target: Literal["text", "image", "mixed"] = option("text", "what drives mapper and CLIP loss")
    mapper: str = option("style", "text mapper, a key of method.mapper.MAPPERS")
    attention_start: float = option(ATTENTION_FROZEN_UNTIL, "share of the run after which attention learns; above 1: never",
                                   min=0, max=10)
    where_share: float = option(0.3, "share of steps that name the place in other words", min=0, max=1)
    shared_where: bool = option(False, "all prompts of a step attend to one place, drawn from those of the world")
    temperature: float = option(0.01, "of the contrastive loss", min=1e-4, max=100)
    negatives: int = option(0, "further prompts, as far as there are, that the contrastive loss holds against every edit",
                            min=0, max=PROMPTS)
    relative: bool = option(False, "score edits by the rise over their source's own similarity")
    max_change: float = option(0.0, "bound on a style's change at strength 1, in spreads; 0: none", min=0, max=WEIGHT)
    precision: Precision = option("fp32", "of synthesis; fp16 on a GPU only")
    amp: bool = option(False, "published spelling of --precision fp16", world=False)
    compile: bool = option(False, "compile synthesis with torch.compile, which takes about a minute at the start",
                           world=False)
    save_intermediate_image_every: int = option(500, "steps between sample sheets and checkpoints, of which one also comes "
                                                     "after a minute and then every ten; 0: "
                                                     "none, and no sheets", min=0, max=STEPS)
    resume: str | None = option(None, "auto: go on from the run's newest whole checkpoint, if any; or a checkpoint's path",
                                world=False)
    seed: int = option(0, "of weights, faces and prompts", min=0, max=SEED, world=False)
    gpu_id: str | None = option(None, "GPUs to use, as in 0,1; with --multiprocessing-distributed a process for each",
                                world=False)
    multiprocessing_distributed: bool = option(False, "one process for every GPU of --gpu_id (or use torchrun)",
                                               published="multiprocessing-distributed", world=False)
    use_cluster: bool = option(False, "published", idle="the attention is always pooled over regions")
    work_in_stylespace: bool = option(False, "published", idle="edits always happen in style space")
    lr_rampup: str | None = option(None, "published", idle="the rate rises over the first 5 %, there whatever this says")
    cutn: str | None = option(None, "published", idle="CLIP sees whole pictures, there as here")
    ir_se50_weights: str | None = option(None, "published", idle=NO_RECOGNISER)


class EvaluateConfig(Config):
    """Options of evaluate.py."""

    run: Path = option(Path("runs/drawn"), "run folder with editor.safetensors, or the name of a shipped editor")
    results: Path | None = option(None, "folder to write to; default: the run folder, runs/NAME-shipped of a shipped one")
    ckpt: Path | None = option(None, CKPT)
    faces: int = option(64, "unseen faces", min=1, max=FACES)
    strength: float = option(STRENGTH, "of the edits in the table", min=0, max=1)
    strengths: str = option("0.025,0.05,0.1,0.15,0.2", "of the sweep, separated by commas; --strength is always among them")
    coverage: float = option(COVERAGE, "of the edits, 0 to 1", min=0, max=1)
    precision: Precision = option("fp32", "of the edits' synthesis; fp16 on a GPU only")
    seed: int = option(4242, "of the faces", min=0, max=SEED)
    trust: bool = option(False, TRUST)
    device: str = option("auto", DEVICE)


class CalibrateConfig(Config):
    """Options of calibrate.py."""

    run: Path = option(Path("runs/drawn"), "run folder with editor.safetensors")
    ckpt: Path | None = option(None, CKPT)
    faces: int = option(32, "generated faces to measure on, unlike those of the evaluation", min=1, max=FACES)
    slack: float = option(0.05, "how much less success than the best will do, for a weaker edit", min=0, max=1)
    coverage: float = option(COVERAGE, "of the edits, 0 to 1", min=0, max=1)
    precision: Precision = option("fp32", "of the edits' synthesis; fp16 on a GPU only")
    seed: int = option(1717, "of the faces", min=0, max=SEED)
    show: bool = option(False, "print what is known of texts, and measure nothing")
    forget: bool = option(False, "take away what was found before, and measure nothing")
    trust: bool = option(False, TRUST)
    device: str = option("auto", DEVICE)


class RealConfig(Config):
    """Options of evaluate_real.py."""

    photos: Path = option(..., "folder of aligned, square pictures, of any size")
    run: Path = option(Path("runs/ffhq"), "run folder with editor.safetensors, or the name of a shipped editor; its world "
                                          "needs an encoder")
    results: Path | None = option(None, "folder to write to; default: RUN/real, or runs/NAME-shipped/real")
    ckpt: Path | None = option(None, CKPT)
    masks: Path | None = option(None, "labels of the pictures in CelebAMask-HQ's layout")
    real: Path | None = option(None, "folder of real pictures for FID and KID; default: --photos")
    pictures: int | None = option(None, "at most so many of the photos, the first by name", min=1, max=PICTURES)
    prompts: str | None = option(None, "texts between semicolons, or published: the eight of the published IoU; default: "
                                       "those of the run's world")
    where: str | None = option(None, "the place of all edits; default: every prompt names its own")
    strength: float = option(STRENGTH, "of the edits", min=0, max=1)
    coverage: float = option(COVERAGE, "of the edits, 0 to 1; the default is the published threshold", min=0, max=1)
    refine: int = option(0, "steps that bring every inversion nearer to its photo", min=0, max=10_000)
    fid: bool = option(True, "FID, KID and IS, which need --inception")
    inception: Path = option(WEIGHTS / INCEPTION_FILE, "weights of torch-fidelity's Inception")
    arcface: Path = option(WEIGHTS / RECOGNISER_FILE, "weights of the face recogniser; without the file, no identity")
    vgg: Path = option(WEIGHTS / VGG_FILE, "weights of VGG-16, for LPIPS; without the file, none")
    precision: Precision = option("fp32", "of the edits' synthesis; fp16 on a GPU only")
    trust: bool = option(False, TRUST)
    device: str = option("auto", DEVICE)
