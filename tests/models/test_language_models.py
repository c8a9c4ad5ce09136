"""Language models from their embeddings on: exact, certified, and explained token by token."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.nn import BcosLinear
from bcos_fx.testing import randomise_

transformers = pytest.importorskip("transformers")

TOKENS = (("the", "film", "was", "great"), ("a", "bore"))
WIDE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": WIDE,
    "DistilBert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "Roberta": WIDE | {"max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "Electra": WIDE | {"embedding_size": 16},
    "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


def classifier(kind: str, attention: str = "sdpa") -> nn.Module:
    """A classifier of three classes that is not trained, in float64."""
    torch.manual_seed(0)
    configuration = getattr(transformers, f"{kind}Config")(
        **KINDS[kind], vocab_size=20, num_labels=3, attn_implementation=attention
    )
    whole = getattr(transformers, f"{kind}ForSequenceClassification")(configuration)
    return randomise_(whole).double().eval()


def inputs(seed: int = 0) -> dict[str, Tensor]:
    """Embeddings of two samples, the second of which is padded; the mask stands first on purpose."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "inputs_embeds": torch.randn(2, 4, 16, dtype=torch.float64, generator=generator),
    }


def pooled(kind: str) -> bool:
    """GPT-2 reads its last token, which it finds by the token indices; from embeddings its body alone is right."""
    return kind != "GPT2"


def subject(kind: str, attention: str) -> tuple[nn.Module, str]:
    whole = classifier(kind, attention)
    return (whole, "logits") if pooled(kind) else (whole.transformer, "last_hidden_state")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_family_is_exact_certified_and_explained(kind: str, attention: str) -> None:
    module, output = subject(kind, attention)
    network = bcos_fx.bcosify(module, example_inputs=inputs(), recipe="equivalent", output_key=output, input="none")
    verification = network.report.figures.verification
    assert verification is not None
    assert verification["ok"], verification["detail"]
    assert not network.report.unknown
    given = inputs(1)
    with torch.no_grad():
        expected = getattr(module(**given), output)
        torch.testing.assert_close(network(**given), expected, rtol=1e-9, atol=1e-9)
    target = None if pooled(kind) else (3, 5)
    found = bcos_fx.explain(network, dict(reversed(given.items())), target)
    assert found.complete
    assert found.weights.shape == (2, 4, 16)
    assert float(found.residual.abs().max()) <= 1e-9 * float(found.output.abs().max())
    if pooled(kind):
        assert not found.contributions[1, 2:].any(), "padding contributed"


@pytest.mark.parametrize("kind", ["Bert", "GPT2"])
def test_the_recipe_for_language_models(kind: str) -> None:
    """No biases on the way of values, B = 1.5, queries and keys as they were; and a classifier of one number each."""
    module, output = subject(kind, "sdpa")
    network = bcos_fx.bcosify(module, example_inputs=inputs(), recipe="bcos-lm", output_key=output)
    layers = {path: part for path, part in network.named_modules() if isinstance(part, nn.Linear)}
    plain = {path for path, part in layers.items() if not isinstance(part, BcosLinear)}
    assert {path.rpartition(".")[2] for path in plain} == ({"query", "key"} if kind == "Bert" else {"0", "1"})
    assert all(part.b == 1.5 and part.bias is None for part in layers.values() if isinstance(part, BcosLinear))
    found = bcos_fx.explain(network, inputs(), None if pooled(kind) else (3, 5))
    assert found.complete
    assert not any("bias" in source for source in found.constants)


@pytest.fixture(scope="module")
def explained() -> Any:
    network = bcos_fx.bcosify(
        classifier("Bert"), example_inputs=inputs(), recipe="equivalent", output_key="logits", input="none"
    )
    return bcos_fx.explain(network, inputs(1), "top2").with_tokens(TOKENS)


def test_the_text_adds_up(explained: Any) -> None:
    text = explained.to_text()
    blocks = re.split(r"^sample .*: ", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == 4  # two samples, two classes each
    for block, output in zip(blocks, explained.output.flatten().tolist(), strict=True):
        head, *rows = block.splitlines()
        assert float(head) == pytest.approx(output, rel=1e-5)
        parts = [float(row.split()[0]) for row in rows]
        assert sum(parts) == pytest.approx(output, abs=1e-5 * max(map(abs, parts)))
    assert "film" in blocks[0]
    assert "bore" in blocks[2]
    assert "position" not in text  # padding contributes nothing


def test_tokens_stay_with_their_samples(explained: Any, tmp_path: Any) -> None:
    assert explained[1].tokens == TOKENS[1:]
    joined = type(explained).joined([explained[1], explained[0]])
    assert joined.tokens == TOKENS[::-1]
    assert "position 3" in explained[0].with_tokens(["the", "film", "was"]).to_text()
    page = explained.with_tokens([["<b>", "&"], ["x"]]).save(tmp_path / "page.html").read_text()
    assert "&lt;b&gt;</span>" in page
    assert "background:rgba" in page


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["one", "sample"], "1 sample, and 2"),
        ([["a"] * 5, ["b"]], "5 tokens, the network was given 4"),
        ([["a", 3], ["b"]], "2 tokens"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens: Any, words: str, explained: Any) -> None:
    with pytest.raises(UsageError, match=words):
        explained.with_tokens(tokens)


def test_images_have_no_tokens() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    found = bcos_fx.explain(network, torch.rand(1, 3, 8, 8))
    with pytest.raises(UsageError, match="not a sequence of tokens"):
        found.with_tokens(["a"])
    with pytest.raises(UsageError, match="an image has no tokens"):
        found.to_text()


def test_inputs_by_name_are_all_there_and_known() -> None:
    module = classifier("Bert")
    network = bcos_fx.bcosify(module, example_inputs=inputs(), recipe="equivalent", output_key="logits", input="none")
    with pytest.raises(UsageError, match="'attention_mask' is missing"):
        bcos_fx.explain(network, {"inputs_embeds": inputs()["inputs_embeds"]})
    with pytest.raises(UsageError, match="no input 'mask'"):
        bcos_fx.explain(network, inputs() | {"mask": torch.ones(2)})
    with pytest.raises(UsageError, match="by name and as others"):
        bcos_fx.explain(network, inputs(), others=[torch.ones(2)])
