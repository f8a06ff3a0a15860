"""The method, once: training, evaluation, demo and tests all edit through RegionEditor."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.errors import UserError
from attention.generator import Blend, Generator, blended_layers, edited_layers, even_bands, nearest
from attention.method.by_text import ByText
from attention.method.defaults import STRENGTH
from attention.method.dose import ENOUGH, SHARES, Judge, least_share
from attention.method.lips import SPARED, like_lips
from attention.method.mapper import MAPPERS, MAX_CHANGE
from attention.method.regions import RegionClusters, pool_by_region
from attention.method.seam import SOLID, Edges, grown
from attention.method.spatial_attention import (
    THRESHOLD,
    SpatialAttention,
    between_rows,
    blur_mask,
    near_sure,
    threshold_attention,
    without_islands,
)
from attention.method.texture import KEPT, with_structure

ABOUT = 0.4                 # of a photo's background, from which on a place is about that; hair has at most 0.34 of it
UNSURE, SURE = 0.6, 0.9     # how surely a photo shows background: where a place of a person begins to end, and has ended


@dataclass(frozen=True)
class Source:
    """Unedited pictures: styles by layer, image (B, 3, R, R) in [-1, 1], labels (B, h, w) of regions.

    Features are by layer, shrunk to the side of the blend layer (or of the regions' if it is larger): no more is read.
    Of a photo, `shared` is the face of the mean of its latent's rows, see `RegionEditor.source_of_photo`, and `guide`
    (1, 3, S, S) in [-1, 1] the photo itself, whose edges are those that an edit shall follow. `w` (B, style_dim) or
    (B, n_latent, style_dim) is what the styles came of, where that is known; `judged` holds these faces in the pictures by
    which doses are found, once they were asked for. `background` (1, 1, S, S) in [0, 1] is how surely a photo shows what is
    nobody's, where that is known.
    """

    styles: list[Tensor]
    features: list[Tensor]
    image: Tensor
    labels: Tensor
    shared: "Source | None" = None
    guide: Tensor | None = None
    w: Tensor | None = None
    background: Tensor | None = None
    judged: list["Source"] = field(default_factory=list)

    @cached_property
    def edges(self) -> Edges:
        """Of the picture, or of its guide."""
        guide = self.image if self.guide is None else F.adaptive_avg_pool2d(self.guide, self.image.shape[-1])
        return Edges.of(guide, self.labels.shape[-1])

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Place:
    """Where a text is about; maps are (B, 1, h, h) in [0, 1], h the side of the blend layer."""

    raw: Tensor             # attention before regions
    attention: Tensor       # its mean over every region, where the text's part may be
    gated: Tensor           # the same, 0 below the threshold
    mask: Tensor            # blurred: what blends
    whole: bool = False     # islands of the gated are left out, see `without_islands`

    @classmethod
    def of(cls, raw: Tensor, attention: Tensor, threshold: float = THRESHOLD, straight_through: bool = False,
           whole: bool = False) -> "Place":
        """An attention and its region means behind the gate: threshold, then blur. Training needs straight_through=True,
        and whole=False."""
        gated = threshold_attention(attention, threshold, straight_through)
        gated = without_islands(gated) if whole else gated
        return cls(raw, attention, gated, blur_mask(gated), whole)

    def of_person(self, background: Tensor, threshold: float = THRESHOLD) -> "Place":
        """The same without what is surely background (1, 1, S, S), unless much of that is what it is about."""
        behind = F.adaptive_avg_pool2d(background, self.mask.shape[-1])
        taken = (self.mask * behind).sum(dim=(1, 2, 3), keepdim=True) / behind.sum().clamp(min=1)       # (B, 1, 1, 1)
        left = 1 - ((behind - UNSURE) / (SURE - UNSURE)).clamp(0, 1)                                # (1, 1, h, h)
        return Place.of(self.raw, torch.where(taken < ABOUT, left, torch.ones_like(left)) * self.attention, threshold,
                        whole=self.whole)

    def at(self, threshold: float) -> "Place":
        """The same attention behind another threshold."""
        return Place.of(self.raw, self.attention, threshold, whole=self.whole)


class Shown(NamedTuple):
    """Where an edit shows, (B, 1, R, R) in [0, 1]: 0 where a pixel shows nothing of it, 1 from SOLID of it on.

    Attributes:
        own: of this edit alone.
        whole: of it or of one before it, the most.
        anew: of those that keep none of the structure of what they lie on, as who opens a mouth does; where edits end at
            edges, and 0 where they do not.
    """

    own: Tensor
    whole: Tensor
    anew: Tensor

    def after(self, before: "Shown | None") -> "Shown":
        """The same with what was shown before."""
        if before is None:
            return self
        return Shown(self.own, torch.maximum(self.whole, before.whole), torch.maximum(self.anew, before.anew))


@dataclass(frozen=True)
class Edit:
    """Edited pictures and how they came about."""

    image: Tensor               # (B, 3, R, R) float32, about [-1, 1]
    styles: list[Tensor]        # by layer
    mask: Tensor                # (B, 1, h, h) in [0, 1]
    features: list[Tensor]      # blended, as those of Source; empty unless they were asked for
    place: Place | None = None  # how the mask came of a text; None if it was given
    drawn: Tensor | None = None     # the picture before edges and texts decided what of it shows; None: all does
    shown: Shown | None = None      # known with the features


class RegionEditor(nn.Module):
    """Edits what a text says, where a text says (Xiao et al. 2023).

    Args:
        generator: frozen.
        regions: fitted at the blend layer, or at another conv layer.
        layer: 0-based index of the conv layer to blend at.
        text_dim: width of the CLIP embeddings.
        mapper: a key of MAPPERS.
        faces, max_change, strength: see StyleMapper.
    Attributes:
        judge: by which `doses` finds how much suits a face; None, as in training, leaves every strength as it is.
        enough: a ByText, how much of the most that a text can gain is enough.
        spared: a ByText, how far from skin's colours to those of lips a pixel must be to show an edit, where edits follow
            edges; 0 where it need not. Lipstick leaves teeth and skin as they are.
        structure: a ByText, how much of the fine structure under an edit is kept there (texture.py): hair that gets another
            colour has the strands it had, and a mouth that opens keeps nothing.
        reach: a ByText, cells by which an edit is blended beyond what is shown of it, where edits follow edges: a new
            background is drawn behind strands of hair too, so that no rim of the old one is left round them.
        follows_edges: pictures show an edit up to the edges of what it lies on (seam.py), and not, as in training, all that
            the generator makes of a mask of a few dozen cells.
    """

    def __init__(self, generator: Generator, regions: RegionClusters, layer: int, text_dim: int, mapper: str = "style",
                 faces: Sequence[Tensor] | None = None, max_change: float = MAX_CHANGE, strength: float = STRENGTH):
        super().__init__()
        self.layer, self.regions = layer, regions
        self.edited = edited_layers(generator.layers, layer)
        side = generator.layers[layer].resolution
        if mapper not in MAPPERS:
            raise UserError(f"--mapper is {mapper!r}, expected one of {', '.join(MAPPERS)}")
        self.mapper = MAPPERS[mapper](self.edited, text_dim, strength=strength, faces=faces, max_change=max_change)
        self.attention = SpatialAttention(generator.layers, generator.constant.shape[1], text_dim, side)
        # Frozen and saved elsewhere: kept out of this module's parameters and state dict.
        self._generator = (generator,)
        self.judge: Judge | None = None
        self.enough = ByText(ENOUGH)
        self.spared, self.structure, self.reach = (ByText(otherwise=0.0) for _ in range(3))
        self.follows_edges = False

    @property
    def generator(self) -> Generator:
        return self._generator[0]

    def with_generator(self, generator: Generator) -> "RegionEditor":
        """The same editor, its weights shared, with a generator that is the same up to the blend layer."""
        other = copy.copy(self)
        other._generator = (generator,)
        return other

    @torch.no_grad()
    def source(self, w: Tensor) -> Source:
        """w (B, style_dim) or w+ (B, n_latent, style_dim) -> the unedited pictures."""
        return replace(self.source_of(self.generator.styles(w)), w=w)

    @torch.no_grad()
    def seen_of(self, source: Source) -> Source:
        """The faces of a source, whose w is known, in this generator's pictures; another one with the same first layers
        made it."""
        assert source.w is not None
        styles = self.generator.styles(source.w)
        shared = None if source.shared is None else self.seen_of(source.shared)
        return replace(source, styles=styles, image=self.generator.picture(styles), shared=shared)

    @torch.no_grad()
    def source_of(self, styles: list[Tensor]) -> Source:
        """One style (B, C_l) per layer -> the unedited pictures.

        In float32 whatever autocast says: regions and gate decide by thresholds, where a rounded feature could turn a
        whole region on or off. All edits of a source share it, so that it costs little.
        """
        # The regions may have been fitted at another layer than the one that blends (--cluster_layer).
        side = max(self.attention.map_size, self.generator.layers[self.regions.layer].resolution)
        with torch.autocast(styles[0].device.type, enabled=False):
            image, features = self.generator.synthesis(styles, feature_side=side)
        assert image is not None                                                                # synthesis stops nowhere
        labels = self.regions.assign(features[self.regions.layer], self.attention.map_size)     # (B, h, w)
        return Source(styles, features, image, labels)

    def source_of_photo(self, w: Tensor) -> Source:
        """As `source`; of w+ (B, n_latent, style_dim), places are found in the face of the mean of its rows as well, and
        the dose is the mean of what suits either.

        Ours. Regions and attention have learned of faces of one w. What a row has of its own in the inversion of a photo
        is little to the eye but moves region after region, and the attention, averaged over wrong regions, stays shut.
        """
        source = self.source(w)
        return source if w.ndim == 2 else replace(source, shared=self.source(w.mean(dim=1)))

    def locate(self, source: Source, where: Tensor, threshold: float = THRESHOLD, straight_through: bool = False) -> Place:
        """Where texts are about: attention, its region means, the gate, a soft seam.

        Args:
            where: (B, D) CLIP embeddings of places; one face may be asked about B texts.
            threshold: of the gate, see threshold_for.
            straight_through: keep the gradient below the threshold, for training.
        """
        logits = self.attention(self.generator.constant, source.features, where)               # (B, 1, h, h)
        place = self.place(source, logits, where, threshold, straight_through)
        if source.shared is not None:
            other = self.locate(source.shared, where)
            place = Place.of(torch.maximum(place.raw, other.raw), torch.maximum(place.attention, other.attention),
                             threshold, straight_through, place.whole)
        return place if source.background is None else place.of_person(source.background, threshold)

    def place(self, source: Source, logits: Tensor, where: Tensor, threshold: float = THRESHOLD,
              straight_through: bool = False) -> Place:
        """What `locate` makes of an attention's logits (B, 1, h, h) to texts of places (B, D)."""
        raw, labels = logits.sigmoid(), source.labels.expand(len(logits), -1, -1)
        pooled = pool_by_region(raw, labels, self.regions.num_regions)
        surer = self.attention.surer(where)[..., None, None]                                    # (B, 1, 1, 1)
        if bool((surer > 0).any()):         # not in training, whose gradient a minimum of equals would divide
            pooled = near_sure(pooled, pool_by_region((logits - surer).sigmoid(), labels, self.regions.num_regions))
        pooled = between_rows(pooled, self.attention.above(where), self.attention.below(where))
        return Place.of(raw, pooled, threshold, straight_through, self.follows_edges and not straight_through)

    def apply(self, source: Source, styles: list[Tensor], mask: Tensor,     # type: ignore[override]  # not Module.apply
              before: Edit | None = None, keep_features: bool = True, edges: bool | None = None,
              what: Tensor | None = None) -> Edit:
        """Show styles inside a mask; outside it the picture stays the source, or `before`.

        Args:
            styles: by layer, (B, C_l); those past the blend layer should be the source's.
            mask: (B, 1, h, h) in [0, 1], blended with as it is.
            before: an earlier edit of the same source, its features kept: the change is added to it.
            keep_features: of the result, for edits that come after it.
            edges: whether the edit ends at the picture's edges; None does as `follows_edges` says.
            what: (B, D) the texts that the styles are of, for what they spare and keep; None is nothing.
        """
        follows = self.follows_edges if edges is None else edges
        wide = grown(mask, self.reach(what)) if follows and what is not None else mask
        blend = Blend(self.layer, wide, source.features, even=True)
        if before is not None:
            blend = Blend(self.layer, torch.zeros_like(mask), self._added(source, styles, wide, before))
        side = self.attention.map_size if keep_features else 0
        image, features = self.generator.synthesis(styles, blend=blend, feature_side=side)
        assert image is not None                                                                # synthesis stops nowhere
        drawn = image.float()
        image = drawn if before is None or before.drawn is None else before.image + (drawn - before.drawn)
        with torch.autocast(image.device.type, enabled=False):
            share = self._share(source, mask, before, what) if follows else None
            kept = None if what is None else self.structure(what)                               # (B, 1)
            if share is not None:
                image = self._shown(source.image if before is None else before.image, image, share, mask, kept)
            earlier = None if before is None else before.shown
            shown = shown_of(share, mask, kept, image).after(earlier) if keep_features else None
        return Edit(image, styles, mask, features, drawn=drawn if follows else None, shown=shown)

    def _share(self, source: Source, mask: Tensor, before: Edit | None, what: Tensor | None) -> Tensor:
        """How much of an edit by a mask (B, 1, h, h) each pixel shows that ends at edges, (B, 1, R, R): see `apply`."""
        under, share = source.image if before is None else before.image, source.edges.share(mask)
        if what is not None and bool(((spared := self.spared(what)) >= SPARED).any()):
            seen, other = (under, None) if before is not None or source.guide is None else (source.edges.picture, under)
            share = share * like_lips(seen, mask, spared, other)
        return share

    def _shown(self, under: Tensor, image: Tensor, share: Tensor, mask: Tensor, kept: Tensor | None) -> Tensor:
        """What is shown of an edit's picture (B, 3, R, R) over the one under it, by a share (B, 1, R, R)."""
        if kept is not None and bool((kept >= KEPT).any()):
            image = with_structure(image, under, share, mask.shape[-1], kept)
        return torch.lerp(under, image, share)

    def forward(self, source: Source, what: Tensor, where: Tensor, strength: float | None = None,
                threshold: float = THRESHOLD, straight_through: bool = False) -> Edit:
        """Edit a source; one face may be edited with B texts, or B faces with B texts.

        Args:
            source: B or 1 pictures.
            what: (B, D) CLIP embedding of the change.
            where: (B, D) CLIP embedding of the place.
            strength: of the change, of which `doses` takes what suits a face; None takes the mapper's own.
            threshold, straight_through: see `locate`.
        """
        place = self.locate(source, where, threshold, straight_through)
        strength = self.mapper.strength if strength is None else strength
        styles = self.mapper(source.styles, what, strength * self.doses(source, what, place.mask))
        edit = self.apply(source, styles, place.mask, keep_features=False, what=what)
        return Edit(edit.image, edit.styles, edit.mask, edit.features, place)

    @torch.no_grad()
    def doses(self, source: Source, what: Tensor, mask: Tensor) -> Tensor:
        """(B, 1): how much of a strength suits each face, see `least_share`; 1 without a judge. Of a photo, the mean of
        what suits its own face and the `shared` one.

        Args:
            what: (B, D) or (1, D).
            mask: (B, 1, h, h) or (1, 1, h, h), where the change is to be.
        """
        if self.judge is None:
            return torch.ones(len(what), 1, device=what.device)
        if source.shared is not None:
            return (self.doses(replace(source, shared=None), what, mask) + self.doses(source.shared, what, mask)) / 2
        return least_share(self.gains(source, what, mask, SHARES), enough=self.enough(what))

    @torch.no_grad()
    def gains(self, source: Source, what: Tensor, mask: Tensor, shares: Sequence[float]) -> list[Tensor]:
        """By how much the judge finds faces nearer to texts at every share of the usual strength: (B,) of each.

        Args:
            what, mask: see `doses`.
        """
        assert self.judge is not None
        editor = self
        if source.w is not None and self.judge.generator is not self.generator:
            editor = self.with_generator(self.judge.generator)
            if not source.judged:
                source.judged.append(replace(editor.seen_of(source), judged=[]))
            source = source.judged[0]
        before, gains = F.cosine_similarity(self.judge.embed(source.image.clamp(-1, 1)), what), []          # (B,)
        usual = self.mapper(source.styles, what)
        for share in shares:
            styles = [torch.lerp(style, edited, share) for style, edited in zip(source.styles, usual, strict=True)]
            edit = editor.apply(source, styles, mask, keep_features=False, edges=False)     # the calibration's, costs less
            gains.append(F.cosine_similarity(self.judge.embed(edit.image.clamp(-1, 1)), what) - before)
        return gains

    def _added(self, source: Source, styles: list[Tensor], mask: Tensor, before: Edit) -> list[Tensor]:
        """Features of an earlier edit with the change of further styles added: before + mask * (styles' - source's)."""
        indices, features = blended_layers(self.generator.layers, self.layer), list(before.features)
        changed = self.generator.synthesis(styles, until=indices[-1], feature_side=self.attention.map_size).features
        for index in indices:
            small = nearest(mask, features[index].shape[-1])
            edited = even_bands(self.generator.layers, index, changed[index], source.features[index])
            features[index] = torch.addcmul(features[index], small, edited - source.features[index])
        return features


def shown_of(share: Tensor | None, mask: Tensor, kept: Tensor | None, image: Tensor) -> Shown:
    """Where a picture (B, 3, R, R) shows an edit.

    Args:
        share: (B, 1, R, R) of one that ends at edges; None of one by a mask (B, 1, h, h) alone.
        kept: (B, 1) of the structure of what it lies on; None is none.
    """
    made = F.interpolate(mask.float(), size=image.shape[-2:], mode="bilinear") if share is None else share
    own = (made / SOLID).clamp(max=1)
    if share is None:
        return Shown(own, own, torch.zeros_like(own))
    return Shown(own, own, own if kept is None else own * (kept < KEPT)[..., None, None])


@torch.no_grad()
def style_spread(generator: Generator, w: Tensor, layers: int) -> list[Tensor]:
    """(C_l,) standard deviation over faces w (N, style_dim) of each of the first `layers` styles."""
    return [style.std(dim=0) for style in generator.styles(w)[:layers]]
