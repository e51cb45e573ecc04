-- Cohen's kappa (Educational and Psychological Measurement 20, 1960): the agreement beyond what two raters would have
-- by chance who gave as many rows each label. NULL where that is all of it, and for tasks whose answer is a number.
CREATE MACRO agreement(a, b) AS TABLE
WITH pair AS (SELECT * FROM compare_runs(a, b)),
given AS (
    SELECT task, unnest([a_answer, b_answer]) AS answer, unnest([1, 0]) AS by_a, unnest([0, 1]) AS by_b
    FROM pair
    WHERE same IS NOT NULL AND a_answer IS NOT NULL AND b_answer IS NOT NULL
),
counted AS (SELECT task, answer, sum(by_a) AS by_a, sum(by_b) AS by_b FROM given GROUP BY task, answer),
chance AS (SELECT task, sum(by_a * by_b) / nullif(sum(by_a) * sum(by_b), 0) AS fraction FROM counted GROUP BY task)
SELECT
    pair.task,
    count(*) AS num_rows,
    count(pair.same) AS compared,
    count_if(pair.same)::BIGINT AS same,
    avg(pair.same::INT) AS agreement,
    (avg(pair.same::INT) - any_value(chance.fraction)) / nullif(1 - any_value(chance.fraction), 0) AS kappa,
    avg(abs(pair.difference)) AS mean_difference
FROM pair
LEFT JOIN chance ON chance.task = pair.task
GROUP BY pair.task
ORDER BY pair.task
