"""The command `import`: checkpoints in the original names become diffusers classes.

Original names are those of the authors' code (`model.diffusion_model.input_blocks...`,
`first_stage_model...`, `cond_stage_model...`, `model_ema...`). Every weight of U-Net and first stage must
find its place.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.artifacts import HOST_FOLDER, atomic_directory
from noiseworks.core.errors import InputError
from noiseworks.ldm.conditioning.conditioners import ClassConditioner, Conditioner, TextConditioner
from noiseworks.ldm.conditioning.spatial import LowResConditioner, MaskConditioner, SemanticConditioner
from noiseworks.ldm.conversion.export import assemble
from noiseworks.ldm.conversion.original_names import State, convert_first_stage, convert_unet, load_strictly
from noiseworks.ldm.diffusion.objective import make_scheduler
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DDIMScheduler


@dataclass(frozen=True)
class Imported:
    """What `import` returns.

    Attributes:
        path: The directory.
        kind: Class of the pipeline, or of the first stage.
    """

    path: Path
    kind: str


def convert(
    checkpoint: Path, config: Path, out: Path, *, ema: bool = True, tokenizer: str | None = None
) -> Imported:
    """Convert an original checkpoint to a diffusers pipeline, or an original first stage to an autoencoder.

    Args:
        checkpoint: A .ckpt or .pt of tensors, or a .safetensors file.
        config: The model's original YAML file.
        out: The directory to make or replace.
        ema: Whether averaged weights are taken where the checkpoint has them.
        tokenizer: Directory or hub id of the text encoder's tokenizer, BERT's or CLIP's, for text models.

    Raises:
        InputError: When files are missing or unreadable, or a weight finds no place.
    """
    settings, state = read_config(config), read_checkpoint(checkpoint)
    params = settings["model"]["params"]
    if "ddconfig" in params:
        vae = convert_first_stage(state, params, "")
        with atomic_directory(out, HOST_FOLDER) as folder:
            vae.save_pretrained(folder)
        return Imported(out, type(vae).__name__)
    vae = convert_first_stage(
        _below(state, "first_stage_model."), params["first_stage_config"]["params"], "first_stage_model."
    )
    scale = state.get("scale_factor", torch.tensor(params.get("scale_factor", 1.0)))
    vae.register_to_config(scaling_factor=float(scale))
    unet = convert_unet(unet_state(state, ema), params["unet_config"]["params"])
    conditioner = convert_conditioner(_below(state, "cond_stage_model."), params, vae, tokenizer)
    pipeline = assemble(unet, vae, convert_schedule(params), conditioner)
    with atomic_directory(out, HOST_FOLDER) as folder:
        pipeline.save_pretrained(folder)
    return Imported(out, type(pipeline).__name__)


def read_config(path: Path) -> dict[str, Any]:
    """Return an original configuration.

    Raises:
        InputError: When it is no YAML file of a model.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text())
        found["model"]["params"]
    except (OSError, ValueError, RecursionError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no original configuration (YAML with model.params): {error}") from error
    return found


def read_checkpoint(path: Path) -> State:
    """Return the tensors of a checkpoint; nothing but tensors is unpickled.

    Raises:
        InputError: When the file is missing, damaged, or holds other objects.
    """
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, which could run code; where you trust it, save its state_dict "
            "as .safetensors and import that"
        ) from error
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint ({error})") from error
    state = loaded.get("state_dict", loaded)
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _below(state: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def unet_state(state: Mapping[str, Tensor], ema: bool) -> State:
    """Return the U-Net's weights in original names, averaged ones where they are there and wanted.

    Averaged weights are stored under their names without dots.
    """
    found = _below(state, "model.diffusion_model.")
    averaged = _below(state, "model_ema.")
    if not ema or not any(name.startswith("diffusion_model") for name in averaged):
        return found
    return {name: averaged["diffusion_model" + name.replace(".", "")] for name in found}


def convert_schedule(params: Mapping[str, Any]) -> "DDIMScheduler":
    """Return the scheduler of an original configuration."""
    prediction = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[
        params.get("parameterization", "eps")
    ]
    schedules = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine", "sqrt": "sqrt"}
    return make_scheduler(
        schedules[params.get("beta_schedule", "linear")],
        params.get("linear_start", 1e-4),
        params.get("linear_end", 2e-2),
        params.get("timesteps", 1000),
        prediction,
    )


def convert_conditioner(
    state: Mapping[str, Tensor], params: Mapping[str, Any], vae: nn.Module, tokenizer: str | None
) -> Conditioner | None:
    """Return the conditioner of an original configuration; None for unconditional models.

    Raises:
        InputError: For conditioners that this import does not know.
    """
    stage = params.get("cond_stage_config", "__is_unconditional__")
    if stage == "__is_unconditional__":
        return None
    if stage == "__is_first_stage__":
        return MaskConditioner(vae)
    name, given = stage["target"].rsplit(".", 1)[-1], stage.get("params", {})
    if name == "Identity" and params.get("conditioning_key") != "crossattn":
        return LowResConditioner()
    if name == "ClassEmbedder":
        classes = ClassConditioner(given["n_classes"] - 1, given["embed_dim"])
        load_strictly(classes, dict(state), "the class embedding")
        return classes
    if name == "SpatialRescaler" and given.get("multiplier", 0.5) == 0.5 and not given.get("bias", False):
        maps = SemanticConditioner(given["in_channels"], given["out_channels"], 2 ** given["n_stages"])
        load_strictly(maps, {"table": state["channel_mapper.weight"][:, :, 0, 0].T}, "the map's convolution")
        return maps
    if name == "BERTEmbedder":
        return _convert_text(state, given, _tokenizer(tokenizer, "BERT's (bert-base-uncased)"))
    if name == "FrozenCLIPEmbedder":
        return _convert_clip(state, _tokenizer(tokenizer, "CLIP's (openai/clip-vit-large-patch14)"))
    raise InputError(f"no conversion for the conditioner {stage['target']} with {given}")


def _tokenizer(name: str | None, whose: str) -> Any:
    from noiseworks.core.models import resolve_model
    from transformers import AutoTokenizer

    if name is None:
        raise InputError(f"a text model needs tokenizer: a directory or hub id of {whose}")
    return AutoTokenizer.from_pretrained(resolve_model(name), model_max_length=77)


def _convert_clip(state: Mapping[str, Tensor], tokenizer: Any) -> TextConditioner:
    """Return the frozen CLIP text encoder of the published text-to-image models, sized by its weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    weights = {
        name.removeprefix("transformer.text_model."): tensor
        for name, tensor in state.items()
        if not name.endswith("position_ids")
    }
    try:
        vocabulary, width = weights["embeddings.token_embedding.weight"].shape
        inner = weights["encoder.layers.0.mlp.fc1.weight"].shape[0]
        positions = weights["embeddings.position_embedding.weight"].shape[0]
    except KeyError as error:
        raise InputError(
            f"the checkpoint's text encoder lacks {error}: it is no CLIP text encoder"
        ) from error
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=sum(name.endswith("mlp.fc1.weight") for name in weights),
            num_attention_heads=width // 64,
            max_position_embeddings=positions,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    load_strictly(encoder, weights, "the text encoder")
    return TextConditioner(encoder, tokenizer, trained=False)


def _convert_text(state: Mapping[str, Tensor], given: Mapping[str, Any], tokenizer: Any) -> TextConditioner:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    width = given["n_embed"]
    encoder = LDMBertModel(
        LDMBertConfig(
            vocab_size=given.get("vocab_size", 30522),
            d_model=width,
            encoder_layers=given["n_layer"],
            encoder_ffn_dim=4 * width,
        )
    )
    load_strictly(encoder, {bert_name(name): tensor for name, tensor in state.items()}, "the text encoder")
    return TextConditioner(encoder, tokenizer, trained=False)


def bert_name(name: str) -> str:
    """Return the diffusers name of a weight of the original text transformer (attention, MLP, ...)."""
    name = name.removeprefix("transformer.")
    layer = re.fullmatch(r"attn_layers\.layers\.(\d+)\.(.*)", name)
    if layer is None:
        name = name.replace("token_emb", "model.embed_tokens").replace("pos_emb.emb", "model.embed_positions")
        return re.sub(r"^norm\b", "model.layer_norm", name)
    index, rest = int(layer[1]), layer[2]
    if index % 2 == 0:
        rest = re.sub(r"^0\.", "self_attn_layer_norm.", rest)
        rest = re.sub(r"^1\.to_(q|k|v)\.", r"self_attn.\1_proj.", rest).replace(
            "1.to_out.", "self_attn.out_proj."
        )
    else:
        rest = re.sub(r"^0\.", "final_layer_norm.", rest)
        rest = rest.replace("1.net.0.0.", "fc1.").replace("1.net.2.", "fc2.")
    return f"model.layers.{index // 2}.{rest}"
