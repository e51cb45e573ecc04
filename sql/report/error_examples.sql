-- A few rows of each kind of error, the first in the source; messages may quote a row, and are cut.
SELECT error_type, custom_id, left(error_message, 300) AS message
FROM detail.outcomes
WHERE status = 'error'
QUALIFY row_number() OVER (PARTITION BY error_type ORDER BY row_index) <= $each
ORDER BY error_type, row_index
LIMIT $most
