"""Small random models of every kind, compressed by hand, for the tests of saving and loading."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowdim.algebra import Blast, BlockDiagonal, LowRank, Monarch, StructuredLinear, is_linear
from lowdim.compress.modules import replace_module

LEFT_ALONE = ("lm_head", "pooler", "classifier", "decoder", "head", "qa_outputs")


class DiTBlock(nn.Module):
    """A transformer block whose norms are modulated by a condition (adaLN), as in DiT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        h = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        h = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate1 * self.proj(h)
        h = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.fc2(functional.gelu(self.fc1(h)))


class DiT(nn.Module):
    """A small diffusion transformer: image patches and a time, to a noise estimate."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2, patch: int = 4) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, 3 * patch * patch)

    def forward(self, image: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * torch.logspace(0, 2, 8)
        condition = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        x = self.embed(image).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, condition)
        return self.out(x)


def bert(kind: str = "BertModel") -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=99
    )
    return getattr(transformers, kind)(config)


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=99, n_positions=64))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=64, vocab_size=99,
        )
    )  # fmt: skip


def qwen2() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=64, vocab_size=99, tie_word_embeddings=True,
        )
    )  # fmt: skip


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            image_size=16, patch_size=8, num_labels=5,
        )
    )  # fmt: skip


def inputs(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    name = type(model).__name__
    if name.startswith("ViT"):
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    if name == "DiT":
        image = torch.randn(2, 3, 16, 16, generator=generator)
        return {"image": image, "time": torch.rand(2, generator=generator)}
    ids = torch.randint(5, 99, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def compressed(model: nn.Module, structures: tuple[str, ...] = ("blast",)) -> nn.Module:
    """Put structured layers with random factors in the place of every inner linear layer, in turn."""
    index = 0
    for name, module in list(model.named_modules()):
        if not is_linear(module) or any(part in LEFT_ALONE for part in name.split(".")):
            continue
        structure = structures[index % len(structures)]
        index += 1
        n, m = module.weight.shape if type(module).__name__ == "Conv1D" else module.weight.shape[::-1]
        operator = {
            "blast": lambda n=n, m=m: Blast(n, m, rank=6, blocks=(4, 2)),
            "lowrank": lambda n=n, m=m: LowRank(n, m, rank=5),
            "blockdiag": lambda n=n, m=m: BlockDiagonal(n, m, blocks=4),
            "monarch": lambda n=n, m=m: Monarch(n, m, rank=2, blocks=(4, 4)),
            "sum": lambda n=n, m=m: Blast(n, m, rank=4, blocks=(2, 2)) + LowRank(n, m, rank=2),
        }[structure]()
        replace_module(model, module, StructuredLinear(operator, module.bias))
    assert index > 0
    return model.eval()


def answer(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        output = model(**batch)
    return output if isinstance(output, Tensor) else output[0]
