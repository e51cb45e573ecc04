"""The commands of the README and the docs: where each is run, and those that `tests/test_readme.py` runs itself."""

FIRST_PAGE = "tests/flows/test_first_page.py"
LABELS = "trunkline sql \"select custom_id, label, label_probs[' positive'] as p, text from results\""
KINDS = 'trunkline sql "select error_type, count(*) as n, any_value(error_message) as example from errors group by all'

BUCKETS = "tests/flows/test_bucket_commands.py"
IN_BUCKET = 'trunkline sql "select label, count(*) from results group by all"'

POOL = "prefect work-pool create trunkline --type"
# Run as they stand, on a small job, with a Prefect server that belongs to the test.
ELSEWHERE = {
    "PREFECT_SERVER_ANALYTICS_ENABLED=false prefect server start": "tests/flows/conftest.py",
    f"{POOL} process": "tests/flows/test_deployment.py",
    "prefect --no-prompt deploy --all": "tests/flows/test_deployment.py",
    "prefect worker start --pool trunkline": "tests/flows/test_deployment.py",
    "prefect deployment run trunkline-score/nightly": "tests/flows/test_deployment.py",
    "prefect deployment run trunkline-score/retry-failed": "tests/flows/test_nights.py",
    "prefect deployment run trunkline-score/ad-hoc --param job=examples/classify.yaml": "tests/flows/test_nights.py",
    "prefect work-pool update trunkline --concurrency-limit 1": "tests/flows/test_nights.py",
    "prefect work-pool get-default-base-job-template --type process": "tests/flows/test_nights.py",
    f"{POOL} docker --base-job-template flows/deploy/docker.json": "tests/flows/test_work_pools.py",
    f"{POOL} kubernetes --base-job-template flows/deploy/kubernetes.json": "tests/flows/test_work_pools.py",
    "prefect automation create --from-file automations.yaml": "tests/flows/test_deployment.py",
    "trunkline stop runs/package-topics": "tests/flows/test_show_runs.py",
    "trunkline score examples/classify.yaml --output s3://results/package-topics": BUCKETS,
    f"{IN_BUCKET} --output s3://results/package-topics": BUCKETS,
    "trunkline preview examples/reviews.yaml --rows 1": FIRST_PAGE,
    "trunkline plan examples/reviews.yaml": FIRST_PAGE,
    "trunkline score examples/reviews.yaml": FIRST_PAGE,
    f"{LABELS} --output runs/reviews": FIRST_PAGE,
    'trunkline sql "select custom_id, error_type, error_message from errors" --output runs/reviews': FIRST_PAGE,
    f'{KINDS} order by n desc"': FIRST_PAGE,
    (
        "OMP_NUM_THREADS=3 trunkline score examples/classify.yaml --output runs/parts"
        " --set engine.device=cpu --set engine.tensor_parallel=3"
    ): "tests/flows/test_ranks.py",
    "trunkline score examples/audience.yaml": "tests/tasks/test_examples.py",
    "trunkline score examples/rerank.yaml": "tests/tasks/test_examples.py",
    "trunkline score examples/loglikelihood.yaml": "tests/tasks/test_examples.py",
    "trunkline score examples/rolling.yaml": "tests/tasks/test_examples.py",
    "trunkline score examples/perplexity.yaml": "tests/tasks/test_examples.py",
    "python -m examples.adapters": "tests/test_example_adapters.py",
    "trunkline score examples/adapters.yaml": "tests/test_example_adapters.py",
}
# Not run by a test, but what each is made of; CONTRIBUTING says so.
IN_PART = {
    "make test": ".ci/run",
    "docker build --file flows/deploy/cpu.Dockerfile --tag trunkline:cpu .": "tests/flows/test_images.py",
    "docker build --file flows/deploy/cuda.Dockerfile --tag trunkline:cuda .": "tests/flows/test_images.py",
    "make bench-peers": "tests/test_peers.py",
    "NUMBA_CPU_NAME=haswell ATEN_CPU_CAPABILITY=avx2 make demo": "tests/engine/test_processors.py",
    "NUMBA_CPU_NAME=znver4 NUMBA_CPU_FEATURES=-avx512vnni make demo": "tests/kernels/cpu/test_objects.py",
}
# Run here as they stand, in a folder with the example's tables about three packages, jobs on the tiny model, and
# benchmarks on it.
GENERATE = "generate --groups 4 --degree 16 --prefix 2000 --distinct 200 --output 100"
CHOICE = "choice --groups 2 --degree 8 --prefix 1000 --distinct 80 --labels 4 --label-tokens 3"
WORKLOADS = (
    f"python -m engine.bench.workload {GENERATE} > generate.jsonl",
    f"python -m engine.bench.workload {CHOICE} > choice.jsonl",
)
BATCH = "trunkline batch examples/batch.jsonl --output out.jsonl --errors errors.jsonl"
BATCH_ERRORS = (
    "trunkline sql \"select line, batch_id, coalesce(fault ->> 'message', error_message) as why from errors\""
    " --output out.jsonl.run/results"
)
TWO_WORKERS = (
    "OMP_NUM_THREADS=2 trunkline score examples/classify.yaml --output runs/two"
    " --set engine.device=cpu --set engine.workers=2"
)
TRACE = "python -m engine.bench.run --kv-gib 4 --model embedded generate.jsonl --trace trace.jsonl"
LIVE = 'trunkline sql "select run_id, status, stage, rows_done, rows, row_errors, tokens_per_second, seconds_left'
LIVE += ' from runs"'
MIXED = 'trunkline sql "select task, custom_id, coalesce(generated_text, label, logprob::text) as answer from results"'
MIXED += " --output runs/mixed"
LM_EVAL = "trunkline lm-eval --model_args pretrained=embedded,max_length=2048"
LM_EVAL += " --tasks package_topics --include_path examples/lm_eval"
BESIDE = "trunkline sql \"from agreement('this', 'stored')\" --output runs/package-topics --with stored=runs/stored"
COLLECTED = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 trunkline score examples/classify.yaml"
STORED = "trunkline score examples/classify.yaml --set store=runs/store --output runs/stored"
SIMULATE = "trunkline simulate examples/classify.yaml --devices 1000 --device h100"
DESCRIBED = f"{SIMULATE} --table groups=6250000,degree=16,prefix=80,distinct=20,output=8 --format json"
HERE = (
    "make install",
    "make demo",
    "make summaries",
    "trunkline score examples/embed.yaml",
    "trunkline sql - --output runs/package-embeddings < examples/similar.sql",
    "make bench",
    "trunkline preview examples/classify.yaml --rows 1",
    "trunkline plan examples/classify.yaml",
    "trunkline plan examples/classify.yaml --device h100",
    "trunkline plan examples/classify.yaml --format json",
    "trunkline simulate examples/classify.yaml --devices 8 --device h100 --price-per-hour 2.5",
    DESCRIBED,
    "make bench-plan",
    "trunkline score examples/classify.yaml",
    "trunkline score examples/classify.yaml --output runs/other --set engine.kv_cache_memory=1GiB",
    "trunkline score examples/classify.yaml --retry-failed",
    TWO_WORKERS,
    "trunkline score examples/classify.yaml --output runs/strict --set engine.determinism=strict",
    "trunkline score examples/classify.yaml --set checkpoint_seconds=2 --set max_error_rate=0.5",
    STORED,
    f"{STORED} --full",
    "trunkline store stats runs/store",
    "trunkline store verify runs/store",
    "trunkline store prune runs/store --older-than 30d --dry-run",
    "trunkline store prune runs/store --older-than 30d",
    "trunkline drift examples/classify.yaml --rows 200 --set model.quantization=int8",
    'trunkline sql "select label, count(*) as n from results group by label order by n desc"',
    'trunkline sql "select * from prefix_savings" --output runs/package-topics',
    'trunkline sql "select custom_id, label_probs from results" --format csv',
    'trunkline sql "select custom_id, label, min_margin from results where min_margin < 0.05 order by min_margin"',
    'trunkline sql "from results order by row_index" --to results.parquet',
    'trunkline sql "from dictionary"',
    'trunkline sql "select custom_id, label from results order by row_index" --to answers.xlsx',
    'trunkline sql "from results order by row_index" --to answers.duckdb',
    BESIDE,
    "trunkline sql --attach",
    "trunkline report runs/package-topics",
    COLLECTED,
    "TRUNKLINE_LOG_FORMAT=json trunkline score examples/classify.yaml",
    "trunkline runs",
    "trunkline runs runs/package-topics --format json",
    LIVE,
    "trunkline sql - < examples/accuracy.sql",
    "trunkline score examples/extract.yaml",
    "trunkline sql - --output runs/package-records < examples/records.sql",
    "trunkline score examples/taglines.yaml",
    'trunkline sql "select custom_id, unnest(outputs, recursive := true) from results" --output runs/package-taglines',
    "trunkline score examples/mixed.yaml",
    MIXED,
    BATCH,
    f"{BATCH} --retry-failed",
    "trunkline batch examples/batch.jsonl --output other.jsonl --model embedded --set engine.kv_cache_memory=1GiB",
    'trunkline sql "select line, batch_id, finish_reason from results" --output out.jsonl.run/results',
    BATCH_ERRORS,
    *WORKLOADS,
    "python -m engine.bench.run --kv-gib 4 --model embedded generate.jsonl",
    "python -m engine.bench.run --kv-gib 4 --model embedded choice.jsonl",
    TRACE,
    LM_EVAL,
    "python -m engine.bench.plot_trace trace.jsonl trace.svg",
    "python -m engine.bench.ablation --rounds 3 --precision bfloat16",
)
# What others read has run before, once, so that every command finds what it is about, in any order.
FIRST = (
    "trunkline score examples/embed.yaml",
    "make demo",
    "trunkline score examples/extract.yaml",
    "trunkline score examples/taglines.yaml",
    "trunkline score examples/mixed.yaml",
    STORED,
    BATCH,
    *WORKLOADS,
    TRACE,
)
# Of one workload's file: the sets of workloads are run whole.
SMALL = {"degree": 2, "prefix": 24, "distinct": 8, "output": 4, "kv-gib": 0.1, "rounds": 1}
