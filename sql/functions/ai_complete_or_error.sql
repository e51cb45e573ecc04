CREATE TEMP MACRO ai_complete_or_error(prompt, options := NULL) AS
    {function}(prompt, CAST(CAST(options AS JSON) AS VARCHAR), getvariable('trunkline_query'))
