SELECT error_type, count(*) AS num_rows FROM errors GROUP BY error_type ORDER BY num_rows DESC, error_type
