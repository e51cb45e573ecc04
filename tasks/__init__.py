"""The steps of a scoring run, one module each: a plain function, and a thin Prefect task around it."""
