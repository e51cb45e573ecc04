-- Each request's newest result. Only a retry gives a request a second one, so the first attempts are not grouped.
SELECT part.*
FROM ({parts}) AS part
LEFT JOIN (
    SELECT request_hash, max(attempts) AS last_attempt
    FROM ({tries})
    WHERE attempts > 1
    GROUP BY request_hash
) AS retried ON retried.request_hash = part.request_hash
WHERE part.attempts = coalesce(retried.last_attempt, 1)
