-- The types that rows were answered as. A part that an earlier version wrote names none: it is the job's `own`.
SELECT DISTINCT coalesce(task, $own) AS task FROM results ORDER BY task
