-- Equal requests once, in the source's order, without those that have an answer.
SELECT
    request.request_hash,
    request.prompt_token_ids,
    request.labels,
    request.label_texts,
    request.max_tokens,
    request.ask,
    request.adapter,
    wanted.attempts,
    wanted.num_rows
FROM read_parquet($requests) AS request
JOIN ({unanswered}) AS wanted ON wanted.first_row = request.row_index
ORDER BY request.row_index
