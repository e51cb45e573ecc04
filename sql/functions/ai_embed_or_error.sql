CREATE TEMP MACRO ai_embed_or_error("text", options := NULL) AS
    {function}("text", CAST(CAST(options AS JSON) AS VARCHAR), getvariable('trunkline_query'))
