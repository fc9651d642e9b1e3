"""Our Transformer and `GPT2LMHeadModel`: one function, two sets of names."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokrl.models.transformer import Transformer, TransformerConfig

if TYPE_CHECKING:  # transformers loads slowly: only those who convert need it
    from transformers import GPT2Config, GPT2LMHeadModel

# What GPT-2 calls each part of a block. Its linear maps are stored as inputs x outputs
# (`Conv1D`), ours as outputs x inputs.
_BLOCK = {
    "norm_1": "ln_1",
    "qkv": "attn.c_attn",
    "out": "attn.c_proj",
    "norm_2": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
_TRANSPOSED = tuple(f"{part}.weight" for part in ("qkv", "out", "up", "down"))
_ALLOWED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def _gpt2_name(name: str) -> str:
    """Where GPT-2 keeps our tensor of that name."""
    whole = {"token_embedding": "wte", "position_embedding": "wpe", "norm": "ln_f"}
    module, _, tensor = name.rpartition(".")
    if module in whole:
        return f"transformer.{whole[module]}.{tensor}"
    _, layer, part = module.split(".")
    return f"transformer.h.{layer}.{_BLOCK[part]}.{tensor}"


def _turned(name: str, tensor: Tensor) -> Tensor:
    """Our tensor of that name in the layout of GPT-2, or theirs in ours."""
    return tensor.T.contiguous() if name.endswith(_TRANSPOSED) else tensor


def from_gpt2(hf_model: "GPT2LMHeadModel") -> Transformer:
    """Our Transformer with a copy of the weights of GPT-2: the same logits.

    Dropout, which plays no part in evaluation mode, is left behind.
    Raises ValueError for a model that is no `GPT2LMHeadModel`, or a variant that our
    Transformer has no place for; it names the setting.
    """
    kind = type(hf_model).__name__
    if kind != "GPT2LMHeadModel":
        raise ValueError(f"{kind} is not a GPT2LMHeadModel: wrap it with from_hf")
    config = hf_model.config
    _check_config(config)
    shape = TransformerConfig(
        vocab_size=config.vocab_size, width=config.n_embd, layers=config.n_layer,
        heads=config.n_head, max_length=config.n_positions,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = Transformer(shape).to(hf_model.device, hf_model.dtype)
    theirs = hf_model.state_dict()
    model.load_state_dict(
        {name: _turned(name, theirs[_gpt2_name(name)]) for name in model.state_dict()}
    )
    return model


def to_gpt2(model: Transformer, **options: Any) -> "GPT2LMHeadModel":
    """A `GPT2LMHeadModel` with a copy of our weights: the same logits.

    options  more fields of `GPT2Config`; the ids of `<pad>`, `<bos>` and `<eos>` are
             those of our tokenizers and there is no dropout, unless they say so
    Its `save_pretrained(folder)` writes the folder that `from_pretrained` reads.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = model.config
    config = GPT2Config(
        vocab_size=shape.vocab_size, n_embd=shape.width, n_layer=shape.layers,
        n_head=shape.heads, n_positions=shape.max_length,
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "embd_pdrop": 0.0,
           "attn_pdrop": 0.0, "resid_pdrop": 0.0, **options},
    )  # fmt: skip
    _check_config(config)
    like = model.token_embedding.weight
    with torch.random.fork_rng(devices=[]):
        hf_model = GPT2LMHeadModel(config).to(like.device, like.dtype).eval()
    ours = model.state_dict()
    weights = {_gpt2_name(name): _turned(name, ours[name]) for name in ours}
    hf_model.load_state_dict({**weights, "lm_head.weight": like})
    return hf_model


def _check_config(config: "GPT2Config") -> None:
    for name, allowed in _ALLOWED.items():
        if (value := getattr(config, name)) not in allowed:
            wanted = " or ".join(map(repr, allowed))
            raise ValueError(
                f"this GPT-2 has {name}={value!r}, our Transformer has {wanted}: wrap "
                "the model with from_hf instead"
            )
    if config.n_inner not in (None, 4 * config.n_embd):
        raise ValueError(
            f"this GPT-2 has n_inner={config.n_inner}, our Transformer has 4 * n_embd "
            f"= {4 * config.n_embd}: wrap the model with from_hf instead"
        )
