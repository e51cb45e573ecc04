CREATE VIEW runs AS
SELECT *
FROM ({records})
ORDER BY sequence
