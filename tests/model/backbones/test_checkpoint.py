"""The backbone comes from four kinds of source, strictly."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import SamConfig, SamModel

from pfedsam.core.errors import CheckpointError
from pfedsam.model import weights
from pfedsam.model.backbones import checkpoint
from pfedsam.model.backbones.checkpoint import describe, load_network, shipped_names
from pfedsam.model.backbones.compact import compact_config, new_network
from pfedsam.model.backbones.key_map import TIED


@pytest.fixture(scope="module")
def toy() -> SamModel:
    return new_network(compact_config("sam-toy"), torch.Generator().manual_seed(3))


@pytest.fixture
def folder(toy: SamModel, tmp_path: Path) -> Path:
    toy.save_pretrained(tmp_path / "toy")
    return tmp_path / "toy"


def refusal(source: str | Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_network(source)
    return str(refused.value)


def change(path: Path, state: dict[str, Tensor], **changes: Tensor | None) -> Path:
    """Write the state with some tensors replaced, added or (None) left out; `__` stands for a dot."""
    changed = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    torch.save({name: t for name, t in {**state, **changed}.items() if t is not None}, path)
    return path


def assert_ready(model: SamModel) -> None:
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    shared = model.shared_image_embedding.positional_embedding
    assert model.prompt_encoder.shared_embedding.positional_embedding is shared


def test_folder(folder: Path, toy: SamModel) -> None:
    model = load_network(folder)
    assert_ready(model)
    assert all(torch.equal(tensor, toy.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_folder_computes_what_transformers_loads(folder: Path) -> None:
    pixels = torch.randn(1, 3, 64, 64)
    ours, theirs = load_network(str(folder)), SamModel.from_pretrained(folder).eval()
    assert torch.equal(ours.get_image_embeddings(pixels), theirs.get_image_embeddings(pixels))


def test_shipped_name_in_half_precision(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, toy: SamModel
) -> None:
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    state = {name: tensor.half() for name, tensor in toy.state_dict().items() if name != TIED[0]}
    save_file(state, folder / "model.safetensors")
    assert shipped_names() == ["toy"]
    model = load_network("toy")
    assert_ready(model)
    assert torch.equal(model.vision_encoder.pos_embed, state["vision_encoder.pos_embed"].float())


@pytest.mark.parametrize("kept", [*TIED, "both"])
def test_the_shared_code_may_stand_under_either_name(folder: Path, toy: SamModel, kept: str) -> None:
    state = {name: tensor.clone() for name, tensor in toy.state_dict().items() if name not in TIED}
    state |= {
        name: toy.shared_image_embedding.positional_embedding.data.clone() for name in TIED if kept in (name, "both")
    }
    save_file(state, folder / "model.safetensors")
    assert_ready(load_network(folder))
    if kept == "both":
        save_file(state | {TIED[0]: torch.zeros_like(state[TIED[0]])}, folder / "model.safetensors")
        assert "differ" in refusal(folder)


def test_official_file(small_official: Path, small_state: dict[str, Tensor]) -> None:
    model = load_network(small_official)
    assert_ready(model)
    code = small_state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert torch.equal(model.prompt_encoder.shared_embedding.positional_embedding, code)
    assert model.config.vision_config.image_size == 256


def test_the_model_does_not_depend_on_the_file_any_more(small_official: Path) -> None:
    model = load_network(small_official)
    before = model.vision_encoder.pos_embed.clone()
    small_official.write_bytes(bytes(small_official.stat().st_size))
    assert torch.equal(model.vision_encoder.pos_embed, before)


@pytest.mark.parametrize("size", [64, 128])
def test_another_size_runs(folder: Path, size: int) -> None:
    model = load_network(folder, image_size=size)
    masks = model(torch.randn(1, 3, size, size), input_boxes=torch.tensor([[[1.0, 2.0, 30.0, 40.0]]])).pred_masks
    assert masks.shape == (1, 1, 3, size // 4, size // 4)


def test_differences_are_listed_by_the_names_of_the_file(small_official: Path, small_state: dict[str, Tensor]) -> None:
    path = change(
        small_official,
        small_state,
        image_encoder__neck__0__weight=None,
        mask_decoder__iou_token__weight=None,
        image_encoder__adapter=torch.zeros(2),
        image_encoder__neck__1__bias=torch.zeros(255),
    )
    message = refusal(path)
    assert "small.pth" in message
    assert "2 tensors missing (image_encoder.neck.0.weight, mask_decoder.iou_token.weight)" in message
    assert "1 tensors extra (image_encoder.adapter)" in message
    assert "image_encoder.neck.1.bias (255,) instead of (256,)" in message


def test_names_of_transformers_in_an_official_file_are_extra(
    small_official: Path, small_state: dict[str, Tensor]
) -> None:
    path = change(small_official, small_state, vision_encoder__pos_embed=small_state["image_encoder.pos_embed"])
    assert "1 tensors extra (vision_encoder.pos_embed)" in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_spoilt_numbers(small_official: Path, small_state: dict[str, Tensor], value: float) -> None:
    spoilt = small_state["image_encoder.neck.1.bias"].clone()
    spoilt[3] = value
    assert "image_encoder.neck.1.bias" in refusal(
        change(small_official, small_state, image_encoder__neck__1__bias=spoilt)
    )


def test_an_architecture_that_is_not_known(tmp_path: Path, small_state: dict[str, Tensor]) -> None:
    message = refusal(change(tmp_path / "other.pth", small_state))
    assert "3 blocks of width 32" in message
    assert "ViT-L (24 blocks of width 1024)" in message


def test_a_state_dict_of_something_else(tmp_path: Path) -> None:
    assert "SAM 2" in refusal(change(tmp_path / "net.pth", {"conv.weight": torch.zeros(3)}))


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict"])
def test_training_checkpoint_around_the_weights_is_unwrapped_with_a_notice(
    small_official: Path, small_state: dict[str, Tensor], caplog: pytest.LogCaptureFixture, wrapper: str
) -> None:
    expected = load_network(small_official).state_dict()
    inside = {"module." + name: tensor for name, tensor in small_state.items()}
    torch.save({wrapper: inside, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "epoch": 3}, small_official)
    with caplog.at_level("WARNING"):
        found = load_network(small_official).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert f"its '{wrapper}' is read as the weights; left out: 'optimizer', 'epoch'." in caplog.text


@pytest.mark.parametrize("others", [{"epoch": 3}, {"model": {}, "state_dict": {}}, {"ema": {"w": torch.zeros(1)}}])
def test_table_in_which_the_weights_are_not_found(tmp_path: Path, others: dict[str, object]) -> None:
    torch.save(others, tmp_path / "latest.pth")
    message = refusal(tmp_path / "latest.pth")
    assert f"it starts with '{next(iter(others))}'" in message
    assert "torch.save(model.state_dict(), new)" in message


@pytest.mark.parametrize("known", [file.file_name for file in weights.KNOWN_FILES.values()])
def test_another_architecture_under_a_known_name(small_official: Path, known: str) -> None:
    path = small_official.rename(small_official.with_name(known))
    message = refusal(path)
    assert known in message
    assert "SHA-256" in message


def test_folder_of_another_size_than_its_config(folder: Path) -> None:
    shutil.copy(folder / "config.json", folder / "old.json")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    assert "tensors missing (vision_encoder.layers.2" in refusal(folder)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("vision_config", "hidden_size", 10**9),
        ("vision_config", "num_hidden_layers", 10**9),
        ("vision_config", "image_size", [64, 64]),
        ("vision_config", "patch_size", 0),
        ("vision_config", "num_attention_heads", 0),
        ("vision_config", "hidden_size", "32"),
        ("vision_config", "hidden_act", "no such function"),
        ("mask_decoder_config", "num_multimask_outputs", 10**9),
        ("mask_decoder_config", "num_attention_heads", 7),
        ("prompt_encoder_config", "patch_size", 0),
        ("prompt_encoder_config", "image_embedding_size", 10_000),
        ("prompt_encoder_config", "image_embedding_size", [4, 4]),
        ("prompt_encoder_config", "image_size", 128),
        ("vision_config", "image_size", 65),
        ("vision_config", "num_labels", 10**6),
        (None, "num_labels", 10**6),
        (None, "num_labels", -1),
        (None, "model_type", "sam2"),
    ],
)
def test_config_that_no_sam_has(folder: Path, part: str | None, name: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part])[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert "toy/config.json does not describe a SAM" in refusal(folder)


WIDTHS = "the encoder's output_channels is {}, twice num_pos_feats is {}, the prompts' hidden_size is {}, the decoder's hidden_size is {}"


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("vision_config", "output_channels", 16, WIDTHS.format(16, 32, 32, 32)),
        ("vision_config", "num_pos_feats", 8, WIDTHS.format(32, 16, 32, 32)),
        ("prompt_encoder_config", "hidden_size", 16, WIDTHS.format(32, 32, 16, 32)),
        ("mask_decoder_config", "hidden_size", 64, WIDTHS.format(32, 32, 32, 64)),
        ("vision_config", "num_channels", 1, "num_channels is 1; allowed is 3, for red, green and blue"),
        (
            "vision_config",
            "num_attention_heads",
            3,
            "hidden_size is 32, which is not a multiple of its num_attention_heads",
        ),
        ("vision_config", "use_rel_pos", False, "its encoder has use_rel_pos switched off"),
        ("vision_config", "num_hidden_layers", 0, "num_hidden_layers is 0, allowed are 1 to 256"),
        ("mask_decoder_config", "num_hidden_layers", 0, "num_hidden_layers is 0, allowed are 1 to 256"),
        ("mask_decoder_config", "mlp_dim", 0, "mlp_dim is 0, allowed are 1 to 16384"),
    ],
)
def test_a_whole_model_that_cannot_work_is_refused(
    tmp_path: Path, part: str, name: str, value: object, message: str
) -> None:
    table = compact_config("sam-toy").to_dict()
    table[part][name] = value
    config = SamConfig.from_dict(table)
    SamModel(config).save_pretrained(tmp_path / "odd")  # weights and configuration agree
    found = refusal(tmp_path / "odd")
    assert message in found
    assert "Expected is what transformers writes for SamModel" in found
    with pytest.raises(CheckpointError):
        describe(tmp_path / "odd")


@pytest.mark.parametrize("part", ["vision_config", "prompt_encoder_config", "mask_decoder_config"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", "it contains NaN, which is not a number"),
        ("-Infinity", "it contains -Infinity, which is not a number"),
        ("1e999", "layer_norm_eps is inf, allowed are numbers above 0 and up to 1"),
        ("-1.0", "layer_norm_eps is -1.0, allowed are numbers above 0 and up to 1"),
        ("0.0", "layer_norm_eps is 0.0, allowed are numbers above 0 and up to 1"),
    ],
)
def test_an_epsilon_with_which_nothing_can_be_trained(folder: Path, part: str, value: str, message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part]["layer_norm_eps"] = "HERE"
    (folder / "config.json").write_text(json.dumps(config).replace('"HERE"', value))
    assert message in refusal(folder)


def test_a_config_of_a_wrong_type_is_told_by_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_size"] = "32"
    (folder / "config.json").write_text(json.dumps(config))
    assert "'hidden_size' expected int, got str" in refusal(folder)


def test_an_activation_that_is_not_known_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "swoosh"
    (folder / "config.json").write_text(json.dumps(config))
    assert "'swoosh' is not a name that transformers knows" in refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 10**5, " " * (2**20 + 1)])
def test_config_that_is_no_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "toy/config.json" in refusal(folder)


def test_folder_without_its_files(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])
    assert "model.safetensors is not a valid safetensors file" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(folder)
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    message = refusal(folder)
    assert name in message
    assert "a pipe" in message


def test_shards_are_refused_with_the_remedy(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"vision_encoder.pos_embed": "../../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "max_shard_size" in refusal(folder)


def test_integers_instead_of_numbers(folder: Path, toy: SamModel) -> None:
    state = {name: tensor.clone() for name, tensor in toy.state_dict().items() if name != TIED[0]}
    save_file(
        state | {"vision_encoder.pos_embed": state["vision_encoder.pos_embed"].int()}, folder / "model.safetensors"
    )
    assert "integers (vision_encoder.pos_embed)" in refusal(folder)


def test_safetensors_file_without_its_folder(folder: Path) -> None:
    assert "name the folder" in refusal(folder / "model.safetensors")


@pytest.mark.parametrize("source", ["no-such-sam", "weights/none.pth", "", "a/b/c", "../x"])
def test_nothing_there(source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(source) if source else refusal(tmp_path / "none")
    assert "Allowed: a shipped name" in message


def test_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = refusal("facebook/sam-vit-base")
    assert "facebook/sam-vit-base" in message
    assert "HF_HUB_OFFLINE" in message


def test_hub_name_from_the_cache(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    # The hub's own layout of its cache: refs name a commit, snapshots hold its files.
    revision = "0" * 40
    cache = tmp_path / "cache" / "models--someone--toy"
    shutil.copytree(folder, cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert_ready(load_network("someone/toy"))


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_a_prefix_that_all_names_share_is_left_out_with_a_notice(
    small_official: Path, small_state: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    expected = load_network(small_official).state_dict()
    torch.save({prefix + name: tensor for name, tensor in small_state.items()}, small_official)
    with caplog.at_level("WARNING"):
        found = load_network(small_official).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "the names are read without it" in caplog.text


def test_a_prefix_of_some_names_only_is_no_wrapper(small_official: Path, small_state: dict[str, torch.Tensor]) -> None:
    first, *_ = small_state
    path = change(small_official, small_state | {f"module.{first}": small_state[first]})
    assert "1 tensors extra (module." in refusal(path)


def test_a_name_that_is_too_long_for_a_file_is_no_weights() -> None:
    assert refusal("x" * 5000).startswith("There are no weights at 'xxx")
