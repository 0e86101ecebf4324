"""How fast is seqagg, beside what people use instead?"""  # noqa: D400
