CREATE TEMP MACRO ai_classify_or_error("text", labels) AS
    {function}("text", labels, getvariable('trunkline_query'))
