CREATE TEMP MACRO ai_score("query", document) AS ai_score_or_error("query", document).value
