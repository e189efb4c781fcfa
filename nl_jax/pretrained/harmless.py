"""Entries of configurations that do not change a model's numbers.

Entries that change them are read. All others are refused; see
:meth:`~nl_jax.pretrained.entries.Facts.finish`.
"""

HF_HARMLESS = (
    # Names, versions and storage.
    "_.*|architectures|model_type|name_or_path|transformers_version",
    "torch_dtype|dtype|torchscript|use_bfloat16|unsloth_.*",
    r"is_llama_config|transformers\.js_config|max_sequence_length",
    # Training.
    ".*dropout(_p|_prob)?|.*_pdrop|initializer_range|gradient_checkpointing",
    # Splitting of equal sums, and precision above float32's.
    "pretraining_tp|chunk_size_feed_forward|reorder_and_upcast_attn",
    # What is returned or kept.
    "use_cache|output_.*|return_dict.*|is_decoder|is_encoder_decoder",
    # Ids of tokens, and drawing of text.
    ".*_token_id|.*_token_ids|tokenizer_class|prefix",
    "(max|min)_(new_)?(length|tokens)|do_sample|early_stopping|num_beam.*",
    "temperature|top_[kp]|typical_p|.*_penalty|.*no_repeat_ngram_size",
    "bad_words_ids|num_return_sequences|remove_invalid_values",
    "exponential_decay_length_penalty|(begin_)?suppress_tokens",
    # Other heads.
    "id2label|label2id|num_labels|problem_type|finetuning_task",
    "task_specific_params|summary_.*",
    # GPT-2's older name of n_positions.
    "n_ctx",
)
"""Regexes of names in ``config.json``."""

GGUF_HARMLESS = (
    r"general\..*|tokenizer\..*|quantize\..*",
    # Said of what the converter has already done, or where training ended.
    r".*\.tensor_data_layout|.*\.rope\.scaling\.finetuned",
    r".*\.rope\.scaling\.original_context_length",
)
"""Regexes of names in the metadata of GGUF files."""
