"""BERT on packed rows in plain PyTorch, over torch's own attention for such rows: what a pyramid must beat."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertForSequenceClassification


def packed_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Attention within each sample, ``[total, heads, head_dim]``; sample by sample where torch has no kernel, on a CPU."""
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
    out = torch.empty_like(q)
    for begin, end in itertools.pairwise(cu_seqlens.tolist()):
        parts = (x[begin:end].transpose(0, 1) for x in (q, k, v))
        out[begin:end] = F.scaled_dot_product_attention(*parts).transpose(0, 1)
    return out


class PackedBert(nn.Module):
    """A stock classifier whose layers see real tokens only; queries, keys and values come from one product.

    Args:
        stock: transformers' classifier, whose modules it shares.
    """

    def __init__(self, stock: BertForSequenceClassification) -> None:
        super().__init__()
        self.stock = stock
        self.heads = stock.config.num_attention_heads
        selves = [layer.attention.self for layer in stock.bert.encoder.layer]
        self.weights = [torch.cat([x.query.weight, x.key.weight, x.value.weight]) for x in selves]
        self.biases = [torch.cat([x.query.bias, x.key.bias, x.value.bias]) for x in selves]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``[batch, labels]`` of a batch ``[batch, width]`` that is padded on the right."""
        bert = self.stock.bert
        rows = attention_mask.flatten().nonzero().squeeze(1)
        lengths = attention_mask.sum(1)
        cu_seqlens, longest = F.pad(lengths.cumsum(0), (1, 0)).int(), int(lengths.max())
        words = input_ids.flatten()[rows].unsqueeze(0)
        x = bert.embeddings(input_ids=words, position_ids=(rows % input_ids.shape[1]).unsqueeze(0)).squeeze(0)
        for layer, weight, bias in zip(bert.encoder.layer, self.weights, self.biases, strict=True):
            q, k, v = F.linear(x, weight, bias).unflatten(1, (3, self.heads, -1)).unbind(1)
            context = packed_attention(q, k, v, cu_seqlens, longest).flatten(1)
            x = layer.attention.output(context, x)
            x = layer.output(layer.intermediate(x), x)
        first = x[cu_seqlens[:-1].long()].unsqueeze(1)
        return self.stock.classifier(bert.pooler(first))
