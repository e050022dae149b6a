"""Search spaces made of choices: what can vary (`nas.mutables`), who decides (`nas.mutators`), and the known spaces (`nas.spaces`)."""
