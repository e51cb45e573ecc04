-- One line for each row that either has an answer to. `same` is NULL where one of them has no result. Labels and texts
-- are the same letter by letter. Figures are the same up to a thousandth, of what they are where that is more than 1:
-- the last bits hang on what was in a batch with a row, which is nobody's other answer.
CREATE MACRO compare_runs(a, b) AS TABLE
SELECT
    custom_id,
    coalesce(one.task, other.task) AS task,
    one.status AS a_status,
    other.status AS b_status,
    one.answer AS a_answer,
    other.answer AS b_answer,
    one."value" AS a_value,
    other."value" AS b_value,
    CASE
        WHEN one."value" = other."value" OR one.scores = other.scores OR one.embedding = other.embedding THEN 0
        WHEN len(one.embedding) = len(other.embedding)
        THEN 1 - list_cosine_similarity(one.embedding, other.embedding)::DOUBLE
        WHEN len(one.scores) = len(other.scores)
        THEN list_max(list_transform(list_zip(one.scores, other.scores), lambda of: abs(of[2] - of[1])))
        ELSE other."value" - one."value"
    END AS difference,
    CASE
        WHEN one.status = 'ok' AND other.status = 'ok'
        THEN coalesce(
            CASE
                WHEN one.answer IS NOT NULL OR other.answer IS NOT NULL THEN one.answer = other.answer
                ELSE abs(difference) <= 0.001 * greatest(1, abs(one."value"), abs(other."value"))
            END,
            false
        )
    END AS same
FROM detail.answers_of(a) AS one
FULL JOIN detail.answers_of(b) AS other USING (custom_id)
