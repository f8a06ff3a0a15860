"""Regions: features with positions, k-means, assignment, files, and means over regions."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_close_to_max
from safetensors.torch import save_file
from sklearn.cluster import KMeans
from tiny import tiny_editor, tiny_world

from attention.config import ClusterConfig
from attention.errors import UserError
from attention.files.regions import load_regions, save_regions
from attention.method import regions
from attention.method.regions import (
    SEARCH_POINTS,
    RegionClusters,
    fit_kmeans,
    kmeans_plus_plus,
    lloyd,
    lloyd_step,
    pool_by_region,
    region_features,
    region_means,
    region_overlay,
    region_points,
)
from attention.training import clustering

MAPPER_FILES = ("mapper_a7c7", "mapper_a7c10_empty", "mapper_a9c4")
CLUSTERS = dict(layer=12, domain="drawn", seed=7, generator_hash="abc", position_weight=2.5, enlarge=2)


def planted_blobs(count=400, width=6, num_regions=4):
    """Points in tight, well separated clusters -> points, true labels, true centres."""
    random = torch.Generator().manual_seed(0)
    centers = torch.randn(num_regions, width, generator=random) * 10
    truth = torch.arange(count) % num_regions
    return centers[truth] + 0.1 * torch.randn(count, width, generator=random), truth, centers


def sum_of_squares(points, centroids):
    """The inertia, in float64, by differences."""
    return float(torch.cdist(points.double(), centroids.double(), compute_mode="donot_use_mm_for_euclid_dist")
                 .amin(1).square().sum())


def same_partition(a, b):
    """Equal up to a renaming of the regions: as many pairs (a, b) as there are labels on either side."""
    pairs = len(set(zip(a.tolist(), b.tolist(), strict=True)))
    return pairs == len(a.unique()) == len(b.unique())


# --- features and positions

@pytest.mark.parametrize("name", MAPPER_FILES)
def test_features_with_positions_are_the_released_ones(name, golden):
    data = golden(name)
    feature = torch.as_tensor(data[f"feature_{int(data['config/cluster_layer']) - 1:02}"])
    expected = torch.as_tensor(data["concat_feature_first_rows"])
    assert_close_to_max(region_points(feature)[:len(expected)], expected, 2e-5)


@pytest.mark.parametrize("name", ("kmeans_a", "kmeans_b"))
def test_points_to_cluster_are_the_released_ones(name, golden):
    data = golden(name)
    assert_close_to_max(region_points(torch.as_tensor(data["feature"]), enlarge=2), torch.as_tensor(data["X"]), 2e-5)


def test_position_weight_scales_positions_and_nothing_else():
    feature = torch.randn(2, 32, 3, 5)
    plain, weighted = region_features(feature), region_features(feature, position_weight=3.0)
    assert plain.shape == (2, 32 + 2 * 2, 3, 5)
    torch.testing.assert_close(weighted[:, :32], plain[:, :32])
    torch.testing.assert_close(weighted[:, 32:], 3 * plain[:, 32:])


def test_x_planes_run_along_rows_and_y_planes_along_columns():
    planes = region_features(torch.zeros(1, 16, 3, 5))[0, 16:]
    torch.testing.assert_close(planes[0], torch.linspace(-1, 1, 5).expand(3, 5))
    torch.testing.assert_close(planes[1], torch.linspace(-1, 1, 3)[:, None].expand(3, 5))


# --- k-means

@pytest.mark.parametrize("name", ("kmeans_a", "kmeans_b"))
def test_kmeans_is_as_tight_as_the_released_fit(name, golden):
    data = golden(name)
    centroids = fit_kmeans(data["X"], int(data["config/clusters"]), seed=42)
    assert sum_of_squares(data["X"], centroids) <= float(data["auto/inertia"]) * (1 + 1e-5)


@pytest.mark.parametrize("name", ("kmeans_a", "kmeans_b"))
def test_lloyd_ends_where_the_released_iterations_end(name, golden):
    data = golden(name)
    centroids, inertia = lloyd(data["X"], data["fixed/init"])
    assert_close_to_max(centroids, data["fixed/centers"], 2e-5)
    assert inertia == pytest.approx(float(data["fixed/inertia"]), rel=1e-5)


def test_kmeans_on_many_points_is_as_tight_as_the_best_of_ten_full_runs():
    points = planted_blobs(SEARCH_POINTS + 1000, width=2, num_regions=40)[0]     # so many that few starts find them all
    points += torch.randn(points.shape, generator=torch.Generator().manual_seed(1))
    full = KMeans(30, n_init=10, algorithm="lloyd", random_state=0).fit(points.numpy())
    for seed in range(2):
        assert sum_of_squares(points, fit_kmeans(points, 30, seed)) <= 1.01 * full.inertia_


def test_all_points_place_the_regions_not_only_the_subset_that_found_them():
    points = torch.randn(SEARCH_POINTS + 1000, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fit_kmeans(points, 1, seed=0), points.mean(0, keepdim=True), rtol=0, atol=1e-6)


def test_a_seed_gives_the_same_centroids_to_the_bit():
    points = torch.randn(SEARCH_POINTS + 1000, 5, generator=torch.Generator().manual_seed(0))
    first, again, other = (fit_kmeans(points, 3, seed) for seed in (7, 7, 8))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_layout_of_the_points_in_memory_changes_no_bit():
    points = torch.randn(3000, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fit_kmeans(points.t().contiguous().t(), 4, seed=7), fit_kmeans(points, 4, seed=7))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_repeats_itself_to_the_bit_and_finds_the_regions_of_the_cpu():
    points = planted_blobs(SEARCH_POINTS + 1000)[0]
    first, again = (fit_kmeans(points.cuda(), 4, seed=7) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first.cpu(), fit_kmeans(points, 4, seed=7), rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk", (7, 1000))
def test_a_lloyd_step_is_a_loop_over_points_and_regions(chunk, monkeypatch):
    monkeypatch.setattr(regions, "CHUNK_POINTS", chunk)
    random = torch.Generator().manual_seed(0)
    points, centroids = torch.randn(200, 6, generator=random) + 3, torch.randn(9, 6, generator=random) + 3
    groups, expected_inertia = [[] for _ in centroids], 0.0
    for point in points.double():
        squared = [float((point - centroid).square().sum()) for centroid in centroids.double()]
        groups[int(np.argmin(squared))].append(point)
        expected_inertia += min(squared)
    moved, inertia = lloyd_step(points, centroids)
    assert_close_to_max(moved, torch.stack([torch.stack(group).mean(0) for group in groups]), 2e-6)
    assert inertia == pytest.approx(expected_inertia, rel=1e-6)


def test_a_centroid_without_points_stays_where_it_is():
    points, far = torch.randn(50, 4), torch.full((4,), 1e3)
    moved, _ = lloyd_step(points, torch.stack([far, points[0], -far]))
    assert torch.equal(moved[[0, 2]], torch.stack([far, -far]))
    torch.testing.assert_close(moved[1], points.mean(0))


def test_starts_are_different_points_even_among_many_equal_ones_far_from_zero():
    different = 10_000 + torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    starts = kmeans_plus_plus(different.repeat_interleave(torch.tensor([300, 1, 1, 1, 1, 1]), 0), 6, torch.Generator())
    assert sorted(starts.tolist()) == sorted(different.tolist())


def test_a_start_has_one_point_in_each_blob():
    points, truth, _ = planted_blobs(num_regions=20, width=3)
    for seed in range(5):
        starts = kmeans_plus_plus(points, 20, torch.Generator().manual_seed(seed))
        assert len(truth[torch.cdist(starts, points).argmin(1)].unique()) == 20


def test_as_many_regions_as_points_are_the_points():
    points = torch.randn(70, 3)
    assert sorted(fit_kmeans(points, 70, seed=0).tolist()) == sorted(points.tolist())


def test_no_point_starts_two_regions_even_if_some_are_so_far_out_that_rounding_outweighs_the_others():
    points = torch.randn(70, 3, generator=torch.Generator().manual_seed(3))
    points[:5] *= 3000
    starts = kmeans_plus_plus(points, 70, torch.Generator().manual_seed(3))
    assert sorted(starts.tolist()) == sorted(points.tolist())


def test_fewer_different_points_than_regions_are_all_found():
    different = torch.randn(3, 5)
    centroids = fit_kmeans(different.repeat(20, 1), 7, seed=0)
    assert centroids.shape == (7, 5) and sum_of_squares(different, centroids) < 1e-9


def test_kmeans_recovers_planted_blobs():
    points, truth, centers = planted_blobs()
    centroids = fit_kmeans(points, num_regions=4, seed=0)
    assert same_partition(torch.cdist(points, centroids).argmin(1), truth)
    assert torch.cdist(centers, centroids).amin(1).max() < 0.05


def test_kmeans_on_a_subset_is_seeded_and_still_recovers_the_blobs():
    points, truth, _ = planted_blobs()
    first, again = (fit_kmeans(points, num_regions=4, seed=3, max_points=60) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert same_partition(torch.cdist(points, first).argmin(1), truth)
    assert not torch.equal(first, fit_kmeans(points, num_regions=4, seed=3))     # the subset was really used


@pytest.mark.parametrize("num_regions", (0, 6))
def test_kmeans_refuses_impossible_numbers_of_regions(num_regions):
    with pytest.raises(UserError, match=f"{num_regions} regions of 5 points"):
        fit_kmeans(torch.randn(5, 3), num_regions, seed=0)


# --- points of sampled faces

@pytest.mark.parametrize("most, share", ((100_000, 512), (300, 100)))
def test_every_batch_gives_an_equal_share_of_its_points(most, share, monkeypatch):
    monkeypatch.setattr(clustering, "MAX_POINTS", most)
    world = tiny_world(tiny_editor().generator)
    config = ClusterConfig(step=3, batch_size=2, seed=5, position_weight=0.5, enlarge=1)
    sampled = clustering.sample_points(world, config, 6)
    assert sampled.shape == (3 * share, 18)
    for rows, w in zip(sampled.split(share), world.sample_w(6, seed=5).split(2), strict=True):
        points = region_points(world.generator.synthesis(world.generator.styles(w)).features[6], 0.5)
        found = [int((points == row).all(1).nonzero()) for row in rows]
        assert len(set(found)) == share


def test_overlaying_faces_one_by_one_is_overlaying_all_of_them():
    world = tiny_world(tiny_editor().generator)
    clusters = RegionClusters(torch.randn(5, 18, generator=torch.Generator().manual_seed(0)), 6, "tiny")
    image, features = world.generator.synthesis(world.generator.styles(world.sample_w(8, seed=9)))
    expected = region_overlay(image, clusters.assign(features[6]))
    difference = np.asarray(clustering.sample_overlay(world, clusters, seed=9)).astype(int) - expected
    assert difference.shape == (64, 256, 3) and abs(difference).max() <= 1


# --- assignment

@pytest.mark.parametrize("name", MAPPER_FILES)
def test_labels_are_the_released_choices(name, golden):
    data = golden(name)
    layer = int(data["config/cluster_layer"]) - 1
    clusters = RegionClusters(torch.as_tensor(data["sd/initial_state"]), layer, "golden")
    feature = torch.as_tensor(data[f"feature_{layer:02}"])
    for size, key in ((None, "choice_native"), (int(data["config/blend_size"]), "choice")):
        # The released ids run on over the batch.
        offset = clusters.num_regions * torch.arange(len(feature))[:, None, None]
        assert torch.equal(clusters.assign(feature, size) + offset, torch.as_tensor(data[key]))


def test_fitted_regions_assign_planted_blobs_in_a_feature_map():
    feature = torch.zeros(2, 16, 8, 8)
    truth = torch.zeros(2, 8, 8, dtype=torch.int64)
    truth[0, 2:5, 3:7], truth[1, :3], truth[1, 6:, 6:] = 1, 2, 1
    feature += 20 * torch.nn.functional.one_hot(truth, 16).movedim(-1, 1)
    clusters = RegionClusters(fit_kmeans(region_points(feature), num_regions=3, seed=0), 0, "test")
    assert same_partition(clusters.assign(feature).flatten(), truth.flatten())


def test_assignment_is_the_nearest_centroid_even_under_autocast():
    feature, clusters = torch.randn(2, 32, 6, 5), RegionClusters(torch.randn(9, 36), 0, "test")
    nearest = torch.cdist(region_points(feature).double(), clusters.centroids.double()).argmin(1).view(2, 6, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clusters.assign(feature), nearest)


def test_positions_weigh_in_assignment_as_in_the_file():
    """On the left, position says region 0 and looks say region 1: who wins is a matter of weight."""
    centroids, feature = torch.zeros(2, 18), torch.zeros(1, 16, 2, 2)
    centroids[:, 16], centroids[:, 0], feature[:, 0, :, 0] = torch.tensor([-4.0, 4.0]), torch.tensor([0.0, 2.0]), 10.0
    for weight, row in ((1.0, [1, 1]), (4.0, [0, 1])):
        assert RegionClusters(centroids, 0, "test", position_weight=weight).assign(feature)[0, 0].tolist() == row


# --- files

def test_saved_regions_come_back_whole(tmp_path):
    path = tmp_path / "new" / "regions.safetensors"
    saved = RegionClusters(torch.randn(3, 18), **CLUSTERS)
    save_regions(saved, path)
    loaded = load_regions(path)
    assert torch.equal(loaded.centroids, saved.centroids)
    assert {name: getattr(loaded, name) for name in CLUSTERS} == CLUSTERS
    assert os.listdir(path.parent) == [path.name]


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "regions.safetensors"
    old = RegionClusters(torch.randn(3, 18), **CLUSTERS)
    save_regions(old, path)

    def break_off(temporary, content):
        with temporary.open("wb") as file:
            file.write(content[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", break_off)
    with pytest.raises(UserError, match="disk full"):
        save_regions(RegionClusters(torch.randn(4, 18), **CLUSTERS), path)
    assert torch.equal(load_regions(path).centroids, old.centroids)
    assert os.listdir(tmp_path) == [path.name]


def _truncated(path):
    save_regions(RegionClusters(torch.randn(3, 18), **CLUSTERS), path)
    path.write_bytes(path.read_bytes()[:-10])


def _without_a_field(path):
    metadata = RegionClusters(torch.randn(3, 18), **CLUSTERS).metadata
    del metadata["layer"]
    save_file({"centroids": torch.randn(3, 18)}, path, metadata=metadata)


@pytest.mark.parametrize("spoil, said", [
    (lambda path: None, "no regions there"),
    (lambda path: path.write_bytes(b""), "not a complete safetensors file"),
    (_truncated, "not a complete safetensors file"),
    (lambda path: save_file({"conv1.weight": torch.zeros(1)}, path), "conv1.weight"),
    (lambda path: save_file({"centroids": torch.zeros(1)}, path, {"kind": "where2edit editor"}), "where2edit editor"),
    (_without_a_field, "layer"),
])
def test_unusable_files_are_refused_with_their_name_and_the_command(tmp_path, spoil, said):
    path = tmp_path / "mine.safetensors"
    spoil(path)
    with pytest.raises(UserError) as error:
        load_regions(path)
    for part in (str(path), said, "python -m attention.clustering_feature"):
        assert part in str(error.value)


@pytest.mark.parametrize("wanted, parts", [
    (dict(layer=8), ("layer", "13", "needs 9", "--attention_layer 9")),
    (dict(num_regions=20), ("number of regions", "3", "needs 20", "--cluster_num 20")),
    (dict(generator_hash="def"), ("generator hash", "abc", "needs def")),
    (dict(channels=32), ("width", "18", "needs 36")),
])
def test_regions_for_something_else_are_refused_with_both_values(tmp_path, wanted, parts):
    path = tmp_path / "mine.safetensors"
    save_regions(RegionClusters(torch.randn(3, 18), **CLUSTERS), path)
    clusters = load_regions(path)
    clusters.check(layer=12, generator_hash="abc", channels=16, num_regions=3)
    with pytest.raises(UserError) as error:
        clusters.check(**wanted)
    for part in (str(path), "--domain drawn", *parts):
        assert part in str(error.value)


def test_assigning_a_map_of_another_width_is_refused():
    with pytest.raises(UserError, match="width"):
        RegionClusters(torch.randn(3, 18), 0, "test").assign(torch.randn(1, 32, 4, 4))


# --- means over regions

@pytest.mark.parametrize("name", MAPPER_FILES)
def test_region_means_are_the_released_ones(name, golden):
    data = golden(name)
    attention = torch.as_tensor(data["each_attention_map"])[:, None]
    num_regions, batch = int(data["config/clusters"]), len(attention)
    labels = torch.as_tensor(data["choice"]) - num_regions * torch.arange(batch)[:, None, None]
    means, counts = region_means(attention, labels, num_regions)
    released = torch.as_tensor(data["cluster_means"]).view(batch, num_regions)
    assert torch.equal(counts == 0, released == -1)                              # they write -1 for an empty region
    assert_close_to_max(means, released.clamp(min=0), 2e-5)
    pooled = pool_by_region(attention, labels, num_regions)
    assert_close_to_max(pooled[:, 0], torch.as_tensor(data["same_attention_map"]), 2e-5)


def test_pooling_is_a_loop_over_regions_forward_and_backward():
    values = torch.rand(3, 1, 5, 7, requires_grad=True)
    labels, weight = torch.randint(0, 6, (3, 5, 7)), torch.randn(3, 1, 5, 7)
    expected = torch.zeros_like(values)
    for image in range(3):
        for region in labels[image].unique():
            inside = labels[image] == region
            expected[image, 0, inside] = values[image, 0, inside].mean()
    pooled = pool_by_region(values, labels, 6)
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(*(torch.autograd.grad((y * weight).sum(), values)[0] for y in (pooled, expected)))


def test_an_empty_region_has_mean_zero_and_no_nan_gradient():
    values = torch.rand(1, 1, 4, 4, requires_grad=True)
    means, counts = region_means(values, torch.full((1, 4, 4), 2), 4)
    means.sum().backward()
    assert means[0, [0, 1, 3]].tolist() == [0, 0, 0] and counts.tolist() == [[0, 0, 16, 0]]
    torch.testing.assert_close(values.grad, torch.full_like(values, 1 / 16))


def test_one_map_of_labels_serves_a_batch():
    values, labels = torch.rand(3, 1, 4, 4), torch.randint(0, 5, (1, 4, 4))
    torch.testing.assert_close(pool_by_region(values, labels, 5), pool_by_region(values, labels.expand(3, 4, 4), 5))


def test_half_precision_attention_is_pooled_in_float32():
    values, labels = torch.full((1, 1, 64, 64), 0.7).bfloat16(), torch.zeros(1, 64, 64, dtype=torch.int64)
    torch.testing.assert_close(pool_by_region(values, labels, 1), values.float())


def test_maps_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(8, 8\)"):
        pool_by_region(torch.rand(1, 1, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64), 2)


# --- the picture for people

def test_overlay_shows_the_pictures_above_one_colour_per_region():
    labels = torch.tensor([[[0, 1], [2, 1]], [[1, 1], [0, 2]]])
    images = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    picture = region_overlay(images, labels, opacity=1.0)
    assert picture.shape == (8, 8, 3) and picture.dtype == np.uint8
    assert (picture[:4, :4] == 0).all() and (picture[:4, 4:] == 255).all()
    seen = {}
    for y, x in np.ndindex(4, 8):
        seen.setdefault(int(labels[x // 4, y // 2, x % 4 // 2]), set()).add(tuple(picture[4 + y, x].tolist()))
    assert [len(colors) for colors in seen.values()] == [1, 1, 1] and len(set.union(*seen.values())) == 3
