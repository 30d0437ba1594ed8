"""The reproduction: claims, the experiments that decide them, and verdicts from records alone.

| module | what |
|---|---|
| `experiments` | what is trained and measured, as data, at every profile |
| `claims` | what the papers claim, the endpoint and the rule that decide each, written before the runs |
| `decide` | intervals over seeds, the rules, and the correction for many claims |
| `runner` | executes experiments with resume and progress, one record a run |
| `programs` | experiments without a diffusion model: the two-sphere, shells, traces, times |
| `observations` | records back to numbers, one a model, seed and quantity |
| `report` | the verdicts and tables, from the records alone |
"""
