-- Each row's answer as it stood at the end of a run, or as it is now where `name` is a folder's.
CREATE MACRO detail.answers_of(name) AS TABLE
WITH wanted AS (
    SELECT
        coalesce(max(folder), error('no run and no folder is named ' || any_value(asked.name))) AS folder,
        max(last_sequence) AS last_sequence
    FROM (SELECT name AS name) AS asked
    LEFT JOIN detail.all_names AS known ON known.name = asked.name
)
SELECT
    custom_id,
    arg_max(struct_pack(status := status, task := task, answer := answer, "value" := "value"), attempts) AS newest
FROM detail.all_answers AS given
JOIN wanted ON given.folder = wanted.folder AND given.sequence <= wanted.last_sequence
GROUP BY custom_id
