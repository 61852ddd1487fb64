"""The operators on GPUs, written in Triton: one file a family of kernels.

Each file begins with the kernels and ends with the functions that are registered as the operators. In kernels, ``p_`` marks
pointers, ``b_`` the values of a block, and "Program (x, y, z)" names the axes of the grid.
"""

from . import answers, attention, attention_backward, compaction, heads, padding, rows

IMPLEMENTATIONS = {
    function.__name__: function
    for function in (
        attention.ragged_attention,
        attention_backward.ragged_attention_backward,
        compaction.mean_over_heads,
        compaction.prune_tokens,
        compaction.prune_rows,
        compaction.top_k_tokens,
        compaction.select_samples,
        padding.measure_padded,
        padding.pack_padded,
        rows.ragged_gather,
        rows.ragged_gather_backward,
        rows.ragged_mean,
        rows.pair_features,
        rows.add_layer_norm,
        rows.bias_gelu,
        rows.gelu_gate,
        rows.rotary_embedding,
        heads.normalized_entropy,
        heads.label_entropy,
        heads.exit_head,
        answers.record_answers,
    )
}
