-- One line for each row that either has an answer to. `same` is NULL where one of them has no result.
CREATE MACRO compare_runs(a, b) AS TABLE
SELECT
    custom_id,
    coalesce(one.newest.task, other.newest.task) AS task,
    one.newest.status AS a_status,
    other.newest.status AS b_status,
    one.newest.answer AS a_answer,
    other.newest.answer AS b_answer,
    one.newest."value" AS a_value,
    other.newest."value" AS b_value,
    other.newest."value" - one.newest."value" AS difference,
    CASE
        WHEN one.newest.status = 'ok' AND other.newest.status = 'ok'
        THEN coalesce(
            one.newest.answer = other.newest.answer,
            one.newest."value" = other.newest."value"
        )
    END AS same
FROM detail.answers_of(a) AS one
FULL JOIN detail.answers_of(b) AS other USING (custom_id)
