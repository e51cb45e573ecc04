SELECT * FROM temp.trunkline_source
