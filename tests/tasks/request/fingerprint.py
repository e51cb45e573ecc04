"""Each key of a job by whether it decides an answer: what tests change, and what `docs/store.md` says."""

from typing import Any

GENERATE = {"type": "generate"}
DRAWN = {"temperature": 0.5, "seed": 1}
FEW = {"type": "choice", "labels": [" a", " b"]}
EMBED, SCORE = {"type": "embed"}, {"type": "score"}

# Changed, the same tokens get another name: what is changed, beside what it needs.
DECIDES: dict[str, tuple[dict[str, Any], Any]] = {
    "sampling.temperature": ({"task": GENERATE, "sampling": DRAWN}, 0.6),
    "sampling.n": ({"task": GENERATE, "sampling": DRAWN}, 2),
    "sampling.best_of": ({"task": GENERATE, "sampling": DRAWN}, 2),
    "sampling.top_p": ({"task": GENERATE}, 0.5),
    "sampling.top_k": ({"task": GENERATE}, 5),
    "sampling.seed": ({"task": GENERATE, "sampling": DRAWN}, 2),
    "sampling.stop": ({"task": GENERATE}, ["x"]),
    "sampling.stop_token_ids": ({"task": GENERATE}, [7]),
    "sampling.ignore_eos": ({"task": GENERATE}, True),
    "sampling.min_tokens": ({"task": GENERATE}, 2),
    "sampling.logprobs": ({"task": GENERATE}, 1),
    "sampling.prompt_logprobs": ({"task": {"type": "perplexity"}}, 1),
    "sampling.min_p": ({"task": GENERATE}, 0.1),
    "sampling.presence_penalty": ({"task": GENERATE}, 0.1),
    "sampling.frequency_penalty": ({"task": GENERATE}, 0.1),
    "sampling.repetition_penalty": ({"task": GENERATE}, 1.1),
    "sampling.logit_bias": ({"task": GENERATE}, {7: 1.0}),
    "sampling.allowed_token_ids": ({"task": GENERATE}, [7]),
    "sampling.bad_words": ({"task": GENERATE}, ["x"]),
    "sampling.include_stop_str_in_output": ({"task": GENERATE}, True),
    "sampling.structured_outputs": ({"task": GENERATE}, {"regex": "a+"}),
    "task.type": ({"task": {"type": "perplexity"}}, "embed"),
    "task.pooling": ({"task": EMBED}, "mean"),
    "task.normalize": ({"task": EMBED}, False),
    "task.dimensions": ({"task": EMBED}, 8),
    "task.context_len": ({"task": {"type": "loglikelihood_rolling"}}, 2),
    "task.apply_softmax": ({"task": SCORE}, False),
    "task.items": ({"task": SCORE}, ["x"]),
    "task.items_column": ({"task": SCORE}, "other"),
    "task.reasoning": ({"task": GENERATE}, {"start": "<think>", "end": "</think>", "opened": False}),
    "model.dtype": ({}, "bfloat16"),
    "model.quantization": ({}, "int8"),
    "model.kv_cache_dtype": ({"on": "h100"}, "fp8"),
    "engine.determinism": ({}, "strict"),
}
# What of a row these make, its tokens, labels and room, is in its name, and they are not: two ways to the same tokens
# are one request.
BY_TOKENS: dict[str, tuple[dict[str, Any], Any]] = {
    "prompt.column": ({}, "other"),
    "prompt.template": ({"prompt": {"template": "{{ text }}"}}, "{{ text }}."),
    "prompt.messages": ({"prompt": {"messages": "text"}}, "other"),
    "prompt.body": ({"prompt": {"body": "text"}}, "other"),
    "prompt.special_tokens": ({}, "parsed"),
    "prompt.truncate_prompt_tokens": ({}, 8),
    "prompt.chat": ({}, True),
    "prompt.chat_template": ({"prompt": {"messages": "text"}}, "named"),
    "prompt.chat_template_kwargs": ({"prompt": {"messages": "text"}}, {"enable_thinking": False}),
    "prompt.chat_template_kwargs_column": ({"prompt": {"messages": "text"}}, "other"),
    "prompt.system": ({"prompt": {"messages": "text"}}, "Be brief."),
    "prompt.tools": ({"prompt": {"messages": "text"}}, [{"type": "function", "function": {"name": "f"}}]),
    "prompt.tools_column": ({"prompt": {"messages": "text"}}, "other"),
    "prompt.add_generation_prompt": ({"prompt": {"messages": "text"}}, False),
    "prompt.continue_final_message": ({"prompt": {"messages": "text"}}, True),
    "task.labels": ({"task": FEW}, [" a", " c"]),
    "task.labels_column": ({"task": {"type": "choice", "labels_column": "text"}}, "other"),
    "task.label_token_ids": ({"task": {"type": "score", "label_token_ids": [1, 2]}}, [1, 3]),
    "task.variants": ({"task": {"type": "classify", "labels": ["a", "b"]}}, []),
    "task.continuation_column": ({"task": {"type": "loglikelihood", "continuation_column": "text"}}, "other"),
    "task.item_first": ({"task": {"type": "score", "items": ["x"]}}, True),
    "sampling.max_tokens": ({"task": GENERATE}, 5),
    "engine.max_model_len": ({}, 128),
}
# Changed, the name stays. A path is not what lies there: `test_fingerprint.py` changes that.
KEEPS: dict[str, tuple[dict[str, Any], Any]] = {
    "name": ({}, "other"),
    "output": ({}, "elsewhere"),
    "shard_seconds": ({}, 1.0),
    "checkpoint_seconds": ({}, 1.0),
    "max_engine_deaths": ({}, 1),
    "max_error_rate": ({}, 0.5),
    "on_error": ({}, "fail"),
    "price_per_hour": ({}, 2.5),
    "store": ({}, "other-store"),
    "runner": ({}, "dask"),
    "dask_scheduler": ({"runner": "dask"}, "tcp://other:8786"),
    "ray_address": ({"runner": "ray"}, "other:6379"),
    "source.parquet": ({}, "other.parquet"),
    "source.csv": ({"source": {"csv": "rows.csv"}}, "other.csv"),
    "source.jsonl": ({"source": {"jsonl": "rows.jsonl"}}, "other.jsonl"),
    "source.duckdb": (
        {"source": {"duckdb": {"database": "a.duckdb", "query": "from t"}}},
        {"database": "b.duckdb", "query": "from u"},
    ),
    "source.folder": ({}, "."),
    "source.delimiter": ({"source": {"csv": "rows.csv"}}, ";"),
    "source.encoding": ({"source": {"csv": "rows.csv"}}, "cp1252"),
    "source.id": ({}, "id"),
    "source.keep": ({}, ["text"]),
    "task.column": ({}, "other"),
    "sampling.column": ({"task": GENERATE}, "other"),
    "model.adapter_column": ({}, "other"),
    "engine.device": ({}, "cuda"),  # which need not be here: a test of its own plans for one
    "engine.kv_cache_memory": ({}, "32MiB"),
    "engine.gpu_memory_utilization": ({}, 0.5),
    "engine.block_size": ({}, 32),
    "engine.max_num_batched_tokens": ({}, 512),
    "engine.sharing": ({}, "none"),
    "engine.order": ({}, "fcfs"),
    "engine.admission": ({}, "count"),
    "engine.max_num_seqs": ({}, 8),
    "engine.speculation": ({}, "none"),
    "engine.step_timeout": ({}, 60.0),
    "engine.workers": ({}, 1),
    "engine.tensor_parallel": ({"on": "h100"}, 2),
}
# Files: what lies there decides, and their names do not.
BY_CONTENT = ("model.path", "model.adapters", "model.adapter")
