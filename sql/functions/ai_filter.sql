CREATE TEMP MACRO ai_filter(prompt) AS ai_filter_or_error(prompt).value
