"""Times workloads of labels on lm-evaluation-harness's HFLM: run by the interpreter that it is installed for.

    echo '{"workload": "choice.jsonl", "order": "shuffled"}' | python run_lm_eval.py MODEL --dtype float32

Loads once, then answers each line of standard input with a JSON line. Loading and a warm-up on a batch's first row are
not timed. HFLM sorts requests itself, whatever the order.
"""

import argparse
import json
import sys
import time
from pathlib import Path

BATCH_SIZE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", required=True)
    options = parser.parse_args()

    import lm_eval
    from lm_eval.models.huggingface import HFLM

    started = time.perf_counter()
    model = HFLM(pretrained=options.model, device="cpu", dtype=options.dtype, batch_size=BATCH_SIZE)
    load_seconds = time.perf_counter() - started
    for line in sys.stdin:
        batch = json.loads(line)
        rows = [json.loads(row) for row in Path(batch["workload"]).read_text().splitlines()]
        requests = [
            (("", ""), row["prompt_token_ids"], continuation) for row in rows for continuation in row["continuations"]
        ]
        model._loglikelihood_tokens(requests[:1], disable_tqdm=True)
        started = time.perf_counter()
        scores = model._loglikelihood_tokens(requests, disable_tqdm=True)
        seconds = time.perf_counter() - started
        assert len(scores) == len(requests), (len(scores), len(requests))
        report = {
            "order": batch["order"],
            "seconds": round(seconds, 3),
            "load_seconds": round(load_seconds, 2),
            "rows": len(rows),
            "prompt_tokens": sum(len(row["prompt_token_ids"]) for row in rows),
            "generated_tokens": 0,
            "version": f"lm-eval {lm_eval.__version__}",
        }
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
