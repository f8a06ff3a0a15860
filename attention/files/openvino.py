"""MobileStyleGAN of FFHQ from the OpenVINO files in the package random-face; none of the package's code is run.

An OpenVINO network is an XML graph of layers and edges, and a file of raw floats that its constants point into. Weights and
biases have the network's own names; what its makers folded together (pointwise weights with their demodulation, noise with
its strength) has none, and is found by following the edges.
"""

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attention.errors import UserError

KINDS = {"f32": "<f4", "i64": "<i8", "i32": "<i4"}


@dataclass(frozen=True)
class Node:
    """One layer of a graph: what it is called and computes, the layers that it takes from, and where a constant lies."""

    name: str
    kind: str
    data: dict[str, str]
    inputs: list[str]


class Graph:
    """A network: its layers by id, and the floats of its constants.

    Raises:
        UserError: the text is no such graph, or a constant lies outside of the floats.
    """

    def __init__(self, text: bytes, floats: bytes, name: str):
        self.name, self.floats = name, floats
        try:
            root = ElementTree.fromstring(text)
            inputs: dict[str, dict[int, str]] = {}
            for edge in root.iterfind("edges/edge"):
                inputs.setdefault(edge.attrib["to-layer"], {})[int(edge.attrib["to-port"])] = edge.attrib["from-layer"]
            self.nodes = {layer.attrib["id"]: Node(
                layer.attrib["name"], layer.attrib["type"], dict(next(layer.iterfind("data"), layer).attrib),
                [source for _, source in sorted(inputs.get(layer.attrib["id"], {}).items())])
                for layer in root.iterfind("layers/layer")}
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            raise UserError(f"{name} is no OpenVINO network ({error})") from error
        self.named = {node.name: key for key, node in self.nodes.items()}
        self.takers: dict[str, list[str]] = {}
        for key, node in self.nodes.items():
            for source in node.inputs:
                self.takers.setdefault(source, []).append(key)

    def after(self, key: str, kind: str) -> str:
        """The one layer of a kind that takes what layer `key` gives."""
        found = [taker for taker in self.takers.get(key, ()) if self.nodes[taker].kind == kind]
        if len(found) != 1:
            raise self.wrong(f"{len(found)} layers of kind {kind} after {self.nodes[key].name}")
        return found[0]

    def before(self, key: str, kind: str) -> str:
        """The one layer of a kind that layer `key` takes from."""
        found = [source for source in self.nodes[key].inputs if self.nodes[source].kind == kind]
        if len(found) != 1:
            raise self.wrong(f"{len(found)} layers of kind {kind} before {self.nodes[key].name}")
        return found[0]

    def id_of(self, name: str) -> str:
        """The layer of this name."""
        if name not in self.named:
            raise self.wrong(f"no layer {name}")
        return self.named[name]

    def constant(self, key: str) -> Tensor:
        """The values of a constant."""
        node = self.nodes[key]
        try:
            kind, offset, size = KINDS[node.data["element_type"]], int(node.data["offset"]), int(node.data["size"])
            shape = [int(side) for side in node.data["shape"].split(",") if side.strip()]
        except (KeyError, ValueError) as error:
            raise self.wrong(f"{node.name} is no constant") from error
        if size != math.prod(shape) * np.dtype(kind).itemsize or not 0 <= offset <= len(self.floats) - size:
            raise self.wrong(f"{node.name} of shape {shape} has {size} bytes from {offset} of {len(self.floats)}")
        return torch.from_numpy(np.frombuffer(self.floats, kind, math.prod(shape), offset).reshape(shape).copy())

    def constants_of(self, key: str) -> list[str]:
        """Which of a layer's inputs are constants."""
        return [source for source in self.nodes[key].inputs if self.nodes[source].kind == "Const"]

    def wrong(self, reason: str) -> UserError:
        return UserError(f"{self.name} is another network than MobileStyleGAN's ({reason})")


def mobile_state(mapping: Graph, synthesis: Graph) -> dict[str, Tensor]:
    """The tensors of `generator.mobile.MobileStyleGAN` of both graphs.

    Raises:
        UserError: they are other networks.
    """
    state = {f"style.{number}.{part}": value for number, layer in enumerate(mapping_layers(mapping), start=1)
             for part, value in layer.items()}
    state["input"] = synthesis.constant(synthesis.id_of("m.input.input"))
    blocks = sum(name.endswith(".up.modulation.weight") for name in synthesis.named)
    names = ["m.conv1", *(f"m.layers.{block}.{part}" for block in range(blocks) for part in ("up", "conv1", "conv2")),
             f"m.layers.{blocks - 1}.to_img"]
    for index, name in enumerate(names):
        kind = name.rpartition(".")[2]
        layer = styled(synthesis, f"{name}.modulation" if kind == "up" else f"{name}.conv.modulation")
        if kind == "to_img":
            layer |= {"weight": synthesis.constant(synthesis.id_of(f"{name}.conv.weight")),
                      "bias": synthesis.constant(synthesis.id_of(f"{name}.bias")).flatten()}
        elif kind != "up":
            layer |= convolution(synthesis, name)
        state |= {f"synthesis_layers.{index}.{part}": value for part, value in layer.items()}
    return state


def mapping_layers(graph: Graph) -> list[dict[str, Tensor]]:
    """Weight and bias of every linear layer, in the order of the network."""
    layers = []
    for key in [key for key, node in graph.nodes.items() if node.kind == "MatMul"]:     # listed in the order they run in
        reshaped = graph.before(graph.after(key, "Add"), "Reshape")
        layers.append({"weight": graph.constant(graph.before(key, "Const")),
                       "bias": graph.constant(graph.constants_of(reshaped)[0]).flatten()})
    return layers


def styled(graph: Graph, name: str) -> dict[str, Tensor]:
    """A modulation's weight and bias, with the factor that follows it folded in."""
    weight, bias = (graph.constant(graph.id_of(f"{name}.{part}")) for part in ("weight", "bias"))
    reshaped = graph.after(graph.after(graph.after(graph.id_of(f"{name}.weight"), "MatMul"), "Add"), "Reshape")
    factors = graph.constants_of(graph.after(reshaped, "Multiply"))
    factor = graph.constant(factors[0]).flatten()[0] if factors else torch.tensor(1.0)
    return {"modulation.weight": weight * factor, "modulation.bias": bias.flatten() * factor}


def convolution(graph: Graph, name: str) -> dict[str, Tensor]:
    """A convolution's weights, noise and bias."""
    bias = graph.id_of(f"{name}.bias")
    noisy = graph.before(graph.after(bias, "Add"), "Add")                       # convolution + noise
    layer = {"weight": graph.constant(graph.before(graph.before(noisy, "Convolution"), "Const")),
             "noise": graph.constant(graph.before(noisy, "Const")), "bias": graph.constant(bias).flatten()}
    depthwise = f"{name}.conv.weight_dw"
    if depthwise in graph.named:
        layer["depthwise"] = graph.constant(graph.id_of(depthwise))[:, 0]       # (C, 1, 1, 3, 3) -> (C, 1, 3, 3)
    return layer
