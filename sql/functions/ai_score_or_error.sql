CREATE TEMP MACRO ai_score_or_error("query", document) AS
    {function}("query", document, getvariable('trunkline_query'))
