CREATE TEMP MACRO ai_filter_or_error(prompt) AS {function}(prompt, getvariable('trunkline_query'))
