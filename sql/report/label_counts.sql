SELECT label, count(*) AS num_rows FROM results GROUP BY label ORDER BY num_rows DESC, label LIMIT 20
