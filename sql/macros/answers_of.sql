-- Each row's answer as it stood at the end of a run, or as it is now where `name` is a folder's.
CREATE MACRO detail.answers_of(name) AS TABLE
WITH wanted AS (
    SELECT
        coalesce(max(folder), error('no run and no folder is named ' || any_value(asked.name))) AS folder,
        max(last_sequence) AS last_sequence
    FROM (SELECT name AS name) AS asked
    LEFT JOIN detail.all_names AS known ON known.name = asked.name
)
SELECT custom_id, status, task, answer, "value", scores, embedding
FROM detail.all_answers AS given
JOIN wanted ON given.folder = wanted.folder AND given.sequence <= wanted.last_sequence
QUALIFY row_number() OVER (PARTITION BY custom_id ORDER BY attempts DESC) = 1
