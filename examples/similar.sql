-- For each package the one whose description is nearest to its own, the surest first.
SELECT
    one.custom_id AS package,
    other.custom_id AS nearest,
    round(list_cosine_similarity(one.embedding, other.embedding), 3) AS similarity
FROM results AS one
JOIN results AS other ON other.custom_id <> one.custom_id
QUALIFY row_number() OVER (PARTITION BY one.custom_id ORDER BY similarity DESC, other.custom_id) = 1
ORDER BY similarity DESC, package
LIMIT 20
