//! The names of llama.cpp (src/llama-arch.cpp, `LLM_KV_NAMES` and `LLM_TENSOR_NAMES`, November 2026), by
//! what becomes of them here. `%s` stands for the name of the architecture, `%d` for the number of a
//! layer or of an expert.

/// Keys that are read where they are needed.
pub const READ: &str = "
    general.architecture general.alignment general.sampling.sequence general.sampling.top_k
    general.sampling.top_p general.sampling.min_p general.sampling.xtc_probability
    general.sampling.xtc_threshold general.sampling.temp general.sampling.penalty_last_n
    general.sampling.penalty_repeat general.sampling.mirostat general.sampling.mirostat_tau
    general.sampling.mirostat_eta %s.vocab_size %s.context_length %s.embedding_length %s.block_count
    %s.feed_forward_length %s.hidden_activation %s.pooling_type %s.attention.head_count
    %s.attention.head_count_kv
    %s.attention.key_length %s.attention.value_length %s.attention.layer_norm_rms_epsilon
    %s.attention.causal %s.attention.sliding_window_pattern %s.attention.key_length_swa
    %s.attention.value_length_swa %s.rope.dimension_count_swa %s.rope.freq_base_swa
    %s.rope.dimension_count %s.rope.freq_base %s.rope.scale_linear %s.rope.scaling.type
    %s.rope.scaling.factor %s.rope.scaling.attn_factor %s.rope.scaling.original_context_length
    %s.rope.scaling.yarn_log_multiplier %s.rope.scaling.yarn_ext_factor
    %s.rope.scaling.yarn_attn_factor %s.rope.scaling.yarn_beta_fast %s.rope.scaling.yarn_beta_slow
    split.no split.count split.tensors.count tokenizer.ggml.model tokenizer.ggml.pre
    tokenizer.ggml.tokens tokenizer.ggml.token_type tokenizer.ggml.scores tokenizer.ggml.merges
    tokenizer.ggml.bos_token_id tokenizer.ggml.eos_token_id tokenizer.ggml.eot_token_id
    tokenizer.ggml.eom_token_id tokenizer.ggml.unknown_token_id tokenizer.ggml.add_bos_token
    tokenizer.ggml.add_eos_token tokenizer.ggml.add_space_prefix tokenizer.ggml.fim_pad_token_id tokenizer.ggml.fim_rep_token_id
    tokenizer.ggml.fim_sep_token_id
";

/// Keys that may have any value, since nothing is computed with them.
pub const DESCRIPTIONS: &str = "
    general.quantization_version general.file_type general.name general.author general.version
    general.url general.description general.license general.source.url
    general.source.huggingface.repository %s.expert_feed_forward_length
    %s.expert_chunk_feed_forward_length %s.tensor_data_layout %s.expert_used_count
    %s.expert_group_count %s.expert_group_used_count %s.expert_weights_scale %s.expert_weights_norm
    %s.expert_latent_length %s.expert_gating_func %s.expert_group_scale %s.experts_per_group
    %s.moe_every_n_layers %s.moe_latent_size %s.router_logit_softcapping
    %s.interleave_moe_layer_step %s.attention.layer_norm_epsilon %s.attention.group_norm_epsilon
    %s.attention.group_norm_groups %s.rope.scaling.finetuned %s.classifier.output_labels %s.classifier.pooling_type
    tokenizer.ggml.token_type_count tokenizer.ggml.seperator_token_id
    tokenizer.ggml.padding_token_id tokenizer.ggml.cls_token_id tokenizer.ggml.mask_token_id
    tokenizer.ggml.add_sep_token
    tokenizer.ggml.remove_extra_whitespaces tokenizer.ggml.precompiled_charsmap
    tokenizer.huggingface.json tokenizer.rwkv.world tokenizer.chat_template
    tokenizer.ggml.normalizer.lowercase tokenizer.ggml.normalizer.strip_accents
    tokenizer.ggml.fim_pre_token_id tokenizer.ggml.fim_suf_token_id tokenizer.ggml.fim_mid_token_id
    tokenizer.ggml.prefix_token_id tokenizer.ggml.suffix_token_id tokenizer.ggml.middle_token_id
";

/// Keys that change the arithmetic at some value, which is refused.
pub const REFUSED: &str = "
    general.type general.tensor_extra.name general.tensor_extra.prec_a4 %s.embedding_length_out
    %s.embedding_length_per_layer_input %s.features_length %s.leading_dense_block_count
    %s.attn_res.block_size %s.activation.situ_beta %s.activation.situ_linear_beta
    %s.expert_shared_feed_forward_length %s.swiglu_clamp_exp %s.swiglu_clamp_shexp
    %s.use_parallel_residual %s.expert_count %s.expert_shared_count %s.nextn_predict_layers
    %s.n_deepstack_layers %s.deepstack_mapping %s.logit_scale %s.decoder_start_token_id
    %s.decoder_block_count %s.attn_logit_softcapping %s.final_logit_softcapping %s.swin_norm
    %s.rescale_every_n_layers %s.time_mix_extra_dim %s.time_decay_extra_dim %s.residual_scale
    %s.embedding_scale %s.adapters.count %s.adapters.token_ids_activate
    %s.adapters.token_ids_substitute %s.adapters.lora_rank %s.adapters.router_gain
    %s.token_shift_count %s.full_attention_interval %s.num_loops %s.skip_loop_final_norm
    %s.hrm.layers_per_stack %s.hrm.h_cycles %s.hrm.l_cycles %s.hrm.prefix_lm
    %s.attention.max_alibi_bias %s.attention.clamp_kqv %s.attention.q_lora_rank
    %s.attention.kv_lora_rank %s.attention.decay_lora_rank %s.attention.iclr_lora_rank
    %s.attention.value_residual_mix_lora_rank %s.attention.gate_lora_rank
    %s.attention.relative_buckets_count %s.attention.sliding_window %s.attention.rope_pattern
    %s.attention.scale %s.attention.output_scale %s.attention.value_scale
    %s.attention.temperature_length %s.attention.temperature_scale %s.attention.key_length_mla
    %s.attention.value_length_mla %s.attention.key_length_mla_swa %s.attention.value_length_mla_swa
    %s.attention.kv_lora_rank_swa %s.attention.indexer.head_count %s.attention.indexer.key_length
    %s.attention.indexer.top_k %s.attention.indexer.block_size %s.attention.indexer.local_blocks
    %s.attention.indexer.types %s.attention.indexer.kpool %s.attention.indexer.kpool_select_tail
    %s.attention.output_group_count %s.attention.output_lora_rank
    %s.attention.compress_rope_freq_base %s.attention.compress_ratios %s.attention.shared_kv_layers
    %s.attention.recurrent_layers %s.hyper_connection.count %s.hyper_connection.sinkhorn_iterations
    %s.hyper_connection.epsilon %s.hyper_connection.magnitude %s.hyper_connection.low_rank
    %s.ple.layers %s.ple.ngram_size %s.ple.heads_per_ngram %s.ple.conv_kernel
    %s.ple.layer_multipliers %s.ple.head_offsets %s.ple.head_vocab_sizes %s.ple.eos_token_id
    %s.ple.image_token_id %s.hash_layer_count %s.rope.dimension_sections %s.rope.scaling.alpha
    %s.ssm.conv_kernel %s.ssm.inner_size %s.ssm.state_size %s.ssm.time_step_rank %s.ssm.group_count
    %s.ssm.dt_b_c_rms %s.kda.head_dim %s.kda.safe_gate %s.kda.gate_lower_bound %s.wkv.head_size
    %s.posnet.embedding_length %s.posnet.block_count %s.convnext.embedding_length
    %s.convnext.block_count %s.target_layers %s.target_hidden_size %s.norm_before_residual
    %s.norm_before_fc %s.block_size %s.conv_kernel_size %s.conv_group_size %s.selector_rank
    %s.selector_top_k %s.shortconv.l_cache %s.dense_2_feat_in %s.dense_2_feat_out %s.dense_3_feat_in
    %s.dense_3_feat_out tokenizer.ggml.suppress_tokens adapter.type adapter.lora.alpha
    adapter.lora.task_name adapter.lora.prompt_prefix adapter.alora.invocation_tokens xielu.alpha_n
    xielu.alpha_p xielu.beta xielu.eps
";

/// Tensors, without `.weight`, of some architecture or other.
pub const TENSORS: &str = "
    altup_proj altup_unembd_proj blk.%d.altup_correct_coef blk.%d.altup_correct_scale
    blk.%d.altup_predict_coef blk.%d.altup_router blk.%d.altup_router_norm
    blk.%d.attn_compressor_ape blk.%d.attn_compressor_gate blk.%d.attn_compressor_kv
    blk.%d.attn_compressor_norm blk.%d.attn_conv_base blk.%d.attn_conv_proj blk.%d.attn_gate
    blk.%d.attn_k blk.%d.attn_k_b blk.%d.attn_k_norm blk.%d.attn_kv blk.%d.attn_kv_a_mqa
    blk.%d.attn_kv_a_norm blk.%d.attn_kv_b blk.%d.attn_norm blk.%d.attn_norm_2 blk.%d.attn_output
    blk.%d.attn_output_a blk.%d.attn_output_b blk.%d.attn_output_norm blk.%d.attn_q blk.%d.attn_q_a
    blk.%d.attn_q_a_norm blk.%d.attn_q_b blk.%d.attn_q_norm blk.%d.attn_qkv blk.%d.attn_res_score
    blk.%d.attn_rot_embd blk.%d.attn_sinks blk.%d.attn_sub_norm blk.%d.attn_v blk.%d.attn_v_b
    blk.%d.channel_mix_key blk.%d.channel_mix_lerp_k blk.%d.channel_mix_lerp_r
    blk.%d.channel_mix_receptance blk.%d.channel_mix_value blk.%d.exp_probs_b blk.%d.exp_probs_b_vl
    blk.%d.ffn.act blk.%d.ffn_conv_base blk.%d.ffn_conv_proj blk.%d.ffn_down blk.%d.ffn_down.%d
    blk.%d.ffn_down_chexps blk.%d.ffn_down_exps blk.%d.ffn_down_shexp blk.%d.ffn_gate
    blk.%d.ffn_gate.%d blk.%d.ffn_gate_chexps blk.%d.ffn_gate_exps blk.%d.ffn_gate_inp
    blk.%d.ffn_gate_inp_shexp blk.%d.ffn_gate_shexp blk.%d.ffn_gate_tid2eid blk.%d.ffn_gate_up_exps
    blk.%d.ffn_latent_down blk.%d.ffn_latent_up blk.%d.ffn_norm blk.%d.ffn_norm_exps
    blk.%d.ffn_res_score blk.%d.ffn_routed_down blk.%d.ffn_routed_norm blk.%d.ffn_routed_up
    blk.%d.ffn_sub_norm blk.%d.ffn_up blk.%d.ffn_up.%d blk.%d.ffn_up_chexps blk.%d.ffn_up_exps
    blk.%d.ffn_up_shexp blk.%d.hc_attn_base blk.%d.hc_attn_down blk.%d.hc_attn_fn
    blk.%d.hc_attn_inject blk.%d.hc_attn_norm blk.%d.hc_attn_scale blk.%d.hc_attn_up
    blk.%d.hc_ffn_base blk.%d.hc_ffn_down blk.%d.hc_ffn_fn blk.%d.hc_ffn_inject blk.%d.hc_ffn_norm
    blk.%d.hc_ffn_scale blk.%d.hc_ffn_up blk.%d.indexer.attn_k blk.%d.indexer.attn_q_b
    blk.%d.indexer.k_norm blk.%d.indexer.k_proj blk.%d.indexer.proj blk.%d.indexer.q_norm
    blk.%d.indexer.q_proj blk.%d.indexer_compressor_ape blk.%d.indexer_compressor_gate
    blk.%d.indexer_compressor_kv blk.%d.indexer_compressor_norm blk.%d.inp_gate blk.%d.laurel_l
    blk.%d.laurel_post_norm blk.%d.laurel_r blk.%d.layer_output_norm blk.%d.layer_output_scale
    blk.%d.nextn.eh_proj blk.%d.nextn.embed_tokens blk.%d.nextn.enorm blk.%d.nextn.hnorm
    blk.%d.nextn.shared_head_head blk.%d.nextn.shared_head_norm blk.%d.ple_conv1d blk.%d.ple_key
    blk.%d.ple_norm_conv blk.%d.ple_norm_key blk.%d.ple_norm_query blk.%d.ple_value
    blk.%d.post_attention_norm blk.%d.post_ffw_norm blk.%d.post_ffw_norm_1 blk.%d.post_ffw_norm_2
    blk.%d.post_norm blk.%d.pre_ffw_norm_2 blk.%d.proj blk.%d.shortconv.conv
    blk.%d.shortconv.in_proj blk.%d.shortconv.out_proj blk.%d.ssm_a blk.%d.ssm_alpha
    blk.%d.ssm_b_norm blk.%d.ssm_ba blk.%d.ssm_beta blk.%d.ssm_c_norm blk.%d.ssm_conv1d
    blk.%d.ssm_conv1d_k blk.%d.ssm_conv1d_q blk.%d.ssm_conv1d_v blk.%d.ssm_d blk.%d.ssm_dt
    blk.%d.ssm_dt_norm blk.%d.ssm_f_a blk.%d.ssm_f_b blk.%d.ssm_g blk.%d.ssm_g_a blk.%d.ssm_g_b
    blk.%d.ssm_in blk.%d.ssm_norm blk.%d.ssm_out blk.%d.ssm_x blk.%d.time_mix_a0 blk.%d.time_mix_a1
    blk.%d.time_mix_a2 blk.%d.time_mix_decay blk.%d.time_mix_decay_w1 blk.%d.time_mix_decay_w2
    blk.%d.time_mix_first blk.%d.time_mix_g1 blk.%d.time_mix_g2 blk.%d.time_mix_gate
    blk.%d.time_mix_k_a blk.%d.time_mix_k_k blk.%d.time_mix_key blk.%d.time_mix_lerp_fused
    blk.%d.time_mix_lerp_g blk.%d.time_mix_lerp_k blk.%d.time_mix_lerp_r blk.%d.time_mix_lerp_v
    blk.%d.time_mix_lerp_w blk.%d.time_mix_lerp_x blk.%d.time_mix_ln blk.%d.time_mix_output
    blk.%d.time_mix_r_k blk.%d.time_mix_receptance blk.%d.time_mix_v0 blk.%d.time_mix_v1
    blk.%d.time_mix_v2 blk.%d.time_mix_value blk.%d.time_mix_w0 blk.%d.time_mix_w1
    blk.%d.time_mix_w2 blk.%d.vis_attn_output blk.%d.vis_attn_qkv blk.%d.vis_down blk.%d.vis_gate
    blk.%d.vis_up cls cls.norm cls.output conf_proj conv1d convnext.%d.dw convnext.%d.gamma
    convnext.%d.norm convnext.%d.pw1 convnext.%d.pw2 d2t dec.blk.%d.attn_k dec.blk.%d.attn_norm
    dec.blk.%d.attn_o dec.blk.%d.attn_q dec.blk.%d.attn_rel_b dec.blk.%d.attn_v
    dec.blk.%d.cross_attn_k dec.blk.%d.cross_attn_norm dec.blk.%d.cross_attn_o
    dec.blk.%d.cross_attn_q dec.blk.%d.cross_attn_rel_b dec.blk.%d.cross_attn_v dec.blk.%d.ffn_down
    dec.blk.%d.ffn_gate dec.blk.%d.ffn_norm dec.blk.%d.ffn_up dec.output_norm dense_2 dense_3
    enc.blk.%d.attn_k enc.blk.%d.attn_norm enc.blk.%d.attn_o enc.blk.%d.attn_q enc.blk.%d.attn_rel_b
    enc.blk.%d.attn_v enc.blk.%d.ffn_down enc.blk.%d.ffn_gate enc.blk.%d.ffn_norm enc.blk.%d.ffn_up
    enc.output_norm fc hrm.z_l_init markov_w1 markov_w2 masked_embd_centroids masked_embd_ordering
    nextn.post_projection nextn.pre_projection output output_hc_base output_hc_down output_hc_fn
    output_hc_norm output_hc_scale output_hc_up output_norm output_res_score per_layer_model_proj
    per_layer_proj_norm per_layer_token_embd position_embd posnet.%d.attn_k posnet.%d.attn_norm
    posnet.%d.attn_output posnet.%d.attn_q posnet.%d.attn_v posnet.%d.conv1 posnet.%d.conv2
    posnet.%d.norm posnet.%d.norm1 posnet.%d.norm2 rope_factors_long rope_factors_short rope_freqs
    selector_hidden selector_predecessor selector_successor token_embd token_embd_norm token_types
";
