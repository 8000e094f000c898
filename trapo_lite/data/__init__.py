"""Load problems from files or the hub, tokenise them and distribute them in batches.

`sources` reads rows, `rows` understands them, `template` and `tokens` make prompts and traces of them, `loading`
filters and counts, `order` distributes.

    loaded = load_problems(config.data, tokenizer, max_response_tokens=8192)
    batch = [loaded.problems[i] for i in batch_indices(step, batch_size=32, num_problems=len(loaded.problems), seed=0)]
"""
