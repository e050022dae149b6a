"""Search spaces made of choices: the choices (`nas.mutables`), mutators that decide (`nas.mutators`), and known spaces
(`nas.spaces`).
"""
