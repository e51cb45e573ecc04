-- Topics that several packages have, out of the records that were finished.
SELECT
    topic,
    count(*) AS packages,
    list_sort(list_distinct(list(parsed ->> 'kind'))) AS kinds,
    min(custom_id) AS one_of_them
FROM (SELECT custom_id, parsed, unnest(CAST(parsed -> 'topics' AS VARCHAR[])) AS topic FROM results)
GROUP BY topic
ORDER BY packages DESC, topic
LIMIT 20
