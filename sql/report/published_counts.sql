SELECT
    (SELECT count(*) FROM results) AS results,
    (SELECT count(*) FROM errors) AS errors
