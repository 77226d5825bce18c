"""Spanish text tables."""

from axk1.train.problems.types import Pool, Tables

_FEMININE = "manzanas monedas pegatinas canicas cartas conchas galletas"
_MASCULINE = "libros lápices sellos huevos botones"

TABLES = Tables(
    language="es",
    names=Pool(
        train=(
            "Ana",
            "Luis",
            "María",
            "Carlos",
            "Lucía",
            "Pedro",
            "Elena",
            "Jorge",
            "Sofía",
            "Pablo",
            "Laura",
            "Diego",
            "Rosa",
            "Juan",
        ),
        heldout=("Inés", "Óscar", "Clara", "Rubén", "Marta", "Hugo"),
    ),
    items=(
        *({"item": item, "q": "cuántas", "Q": "Cuántas", "los": "las", "todos": "todas"} for item in _FEMININE.split()),
        *(
            {"item": item, "q": "cuántos", "Q": "Cuántos", "los": "los", "todos": "todos"}
            for item in _MASCULINE.split()
        ),
    ),
    number_answer="La respuesta es {v}.",
    list_answer="El orden es {v}.",
    weekday_answer="El día es {v}.",
    weekdays=("lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo"),
    arithmetic=Pool(
        train=(
            "¿Cuánto es {e}?",
            "cuánto es {e}",
            "Calcula {e}.",
            "Calcula: {e}",
            "¿Qué resultado da {e}?",
            "Halla el valor de {e}.",
            "Por favor, calcula {e}.",
            "¿Cuál es el resultado de {e}?",
            "Dime cuánto es {e}.",
            "Resuelve {e}.",
            "¿Puedes calcular {e}?",
            "Resuelve: {e}",
        ),
        heldout=(
            "¿Cuál es el valor de {e}?",
            "Dime el resultado de {e}.",
            "Por favor, dime cuánto es {e}.",
            "Halla el resultado: {e}",
            "Por favor, halla el valor de {e}.",
        ),
    ),
    follow_up={
        "add": Pool(
            train=("Ahora suma {n}.", "Suma {n} a eso.", "¿Y más {n}?", "¿Y si sumas {n}?", "Por favor, suma {n} más."),
            heldout=("Por favor, ahora suma {n}.", "¿Y si sumas {n} a eso?"),
        ),
        "subtract": Pool(
            train=(
                "Ahora resta {n}.",
                "Resta {n} a eso.",
                "¿Y menos {n}?",
                "¿Y si restas {n}?",
                "Por favor, resta {n}.",
            ),
            heldout=("Por favor, ahora resta {n}.", "¿Y si restas {n} a eso?"),
        ),
    },
    opening=Pool(
        train=(
            "{name} tiene {n} {item}.",
            "Al principio {name} tiene {n} {item}.",
            "{name} empieza con {n} {item}.",
            "Por la mañana {name} tiene {n} {item}.",
            "En la mesa de {name} hay {n} {item}.",
            "{name} guarda {n} {item} en una bolsa.",
            "En casa {name} tiene {n} {item}.",
            "El lunes {name} tiene {n} {item}.",
            "{name} lleva {n} {item} en la mochila.",
            "{name} tiene una caja con {n} {item}.",
        ),
        heldout=(
            "Al principio hay {n} {item} en la mochila de {name}.",
            "{name} tiene {n} {item} en la mesa.",
            "Por la mañana {name} empieza con {n} {item}.",
            "{name} guarda {n} {item} en casa.",
        ),
    ),
    opening_packed=Pool(
        train=(
            "{name} tiene {n} cajas con {m} {item} cada una.",
            "{name} tiene {n} bolsas de {m} {item}.",
            "Al principio {name} tiene {n} cajas de {m} {item}.",
            "En la mesa de {name} hay {n} bolsas con {m} {item} en cada una.",
            "En casa {name} guarda {n} cajas, cada una con {m} {item}.",
            "{name} empieza con {n} bolsas, cada una con {m} {item}.",
        ),
        heldout=(
            "En casa {name} tiene {n} cajas de {m} {item}.",
            "Por la mañana {name} tiene {n} bolsas con {m} {item} cada una.",
        ),
    ),
    then=("Luego ", "Más tarde ", "Después ", "Entonces ", "Ahora "),
    events={
        "gain": Pool(
            train=(
                "{name} compra {n} más.",
                "{name} recibe {n} {item} más.",
                "Un amigo le da {n} {item} a {name}.",
                "{name} encuentra {n} {item}.",
                "{name} gana {n} más.",
                "Llegan {n} {item} más.",
                "{name} consigue {n} {item} más.",
                "Su madre le da {n} más a {name}.",
                "{name} compra {n} {item} en una tienda.",
                "{name} recibe {n} de un amigo.",
                "{name} encuentra {n} más en una caja.",
                "{name} gana {n} {item}.",
            ),
            heldout=(
                "Un amigo le da {n} más a {name}.",
                "{name} compra {n} {item} más.",
                "{name} encuentra {n} {item} más.",
                "{name} recibe {n} {item} de un amigo.",
            ),
        ),
        "lose": Pool(
            train=(
                "{name} pierde {n}.",
                "{name} le da {n} {item} a un amigo.",
                "{name} vende {n} {item}.",
                "{name} regala {n} {item}.",
                "{name} dona {n}.",
                "{name} tira {n} {item}.",
                "Se pierden {n} {item}.",
                "{name} le da {n} a su hermano.",
                "{name} vende {n} en una tienda.",
                "Un amigo se lleva {n} {item}.",
                "{name} regala {n} a un amigo.",
                "{name} pierde {n} de {los} {item}.",
            ),
            heldout=(
                "{name} le da {n} {item} a su hermano.",
                "{name} pierde {n} {item}.",
                "{name} vende {n}.",
                "Un amigo se lleva {n}.",
            ),
        ),
        "double": Pool(
            train=(
                "El número de {item} se duplica.",
                "{name} duplica el número de {item}.",
                "El número se duplica.",
                "{name} tiene el doble.",
                "{name} duplica ese número.",
                "{name} tiene el doble de {item} que antes.",
                "Hay el doble de {item}.",
            ),
            heldout=("{name} tiene el doble de {item}.", "Hay el doble que antes."),
        ),
        "boxes": Pool(
            train=(
                "{name} compra {n} cajas de {m}.",
                "{name} recibe {n} cajas con {m} {item} cada una.",
                "Un amigo le da {n} bolsas de {m} {item} a {name}.",
                "{name} encuentra {n} bolsas con {m} {item} en cada una.",
                "Llegan {n} cajas, cada una con {m} {item}.",
                "{name} consigue {n} bolsas, cada una con {m}.",
                "{name} compra {n} bolsas con {m} en cada una.",
                "Su madre le da {n} cajas, cada una con {m} {item}, a {name}.",
            ),
            heldout=(
                "{name} compra {n} bolsas de {m} {item}.",
                "Un amigo le da {n} cajas con {m} {item} cada una a {name}.",
                "{name} recibe {n} bolsas, cada una con {m} {item}.",
            ),
        ),
        "share": Pool(
            train=(
                "{name} reparte {todos} por igual entre {n} amigos.",
                "{name} reparte {los} {item} por igual entre {n} niños.",
                "{name} divide {todos} {los} {item} por igual entre {n} personas.",
                "Se reparten {todos} por igual en {n} grupos.",
                "{name} pone {todos} {los} {item} por igual en {n} cajas.",
                "{n} personas se reparten {los} {item} por igual.",
            ),
            heldout=(
                "{name} reparte {todos} {los} {item} por igual entre {n} personas.",
                "{name} divide {los} {item} por igual entre {n} amigos.",
            ),
        ),
    },
    closing=Pool(
        train=(
            "¿{Q} {item} tiene {name} ahora?",
            "¿{Q} hay ahora?",
            "¿{Q} {item} quedan al final?",
            "¿{Q} {item} hay en total?",
            "¿Cuál es el número de {item} ahora?",
            "¿{Q} tiene {name} al final?",
        ),
        heldout=(
            "¿{Q} {item} tiene {name} en total?",
            "¿{Q} {item} hay al final?",
            "¿Cuál es el número de {item} al final?",
        ),
    ),
    closing_share=Pool(
        train=(
            "¿{Q} hay en cada parte?",
            "¿{Q} {item} corresponden a cada parte?",
            "¿Cuál es el número de {item} en cada parte?",
            "¿De {q} {item} es cada parte?",
            "¿{Q} tocan en cada parte?",
        ),
        heldout=("¿{Q} {item} hay en cada parte?", "¿{Q} {item} tocan en cada parte?"),
    ),
    labels={
        "start": "Inicio",
        "gain": "Suma",
        "lose": "Resta",
        "double": "Doble",
        "boxes": "Cajas",
        "share": "Reparto",
    },
    sentence_gap=" ",
    count_words=(
        ("manzana", "pera", "uva", "limón", "higo"),
        ("rojo", "azul", "verde", "negro", "blanco"),
        ("gato", "perro", "pez", "vaca", "oso"),
        ("a", "b", "c", "d", "e"),
    ),
    count_item=Pool(
        train=(
            "¿Cuántas veces aparece {x} en esta lista: {l}?",
            "¿Cuántas veces está {x} en {l}?",
            "Cuenta {x}: {l}",
            "Lista: {l}. ¿Cuántas veces aparece {x}?",
            "En la lista {l}, ¿cuántas veces sale {x}?",
            "¿Cuántas veces sale {x}? {l}",
            "Cuenta cuántas veces aparece {x} en {l}.",
            "Esta es la lista: {l}. ¿Cuántas veces ves {x}?",
        ),
        heldout=(
            "Esta es la lista: {l}. ¿Cuántas veces aparece {x}?",
            "Cuenta cuántas veces sale {x} en esta lista: {l}",
            "En la lista {l}, ¿cuántas veces ves {x}?",
        ),
    ),
    count_above=Pool(
        train=(
            "¿Cuántos de estos números son mayores que {x}: {l}?",
            "¿Cuántos números son mayores que {x}? {l}",
            "Cuenta los números mayores que {x}: {l}",
            "Lista: {l}. ¿Cuántos números son más grandes que {x}?",
            "En la lista {l}, ¿cuántos números son mayores que {x}?",
            "Esta es la lista: {l}. Cuenta los números más grandes que {x}.",
        ),
        heldout=(
            "Esta es la lista: {l}. ¿Cuántos son mayores que {x}?",
            "Cuenta cuántos números son más grandes que {x}: {l}",
        ),
    ),
    count_below=Pool(
        train=(
            "¿Cuántos de estos números son menores que {x}: {l}?",
            "¿Cuántos números son menores que {x}? {l}",
            "Cuenta los números menores que {x}: {l}",
            "Lista: {l}. ¿Cuántos números son más pequeños que {x}?",
            "En la lista {l}, ¿cuántos números son menores que {x}?",
            "Esta es la lista: {l}. Cuenta los números más pequeños que {x}.",
        ),
        heldout=(
            "Esta es la lista: {l}. ¿Cuántos son menores que {x}?",
            "Cuenta cuántos números son más pequeños que {x}: {l}",
        ),
    ),
    list_gap=", ",
    sort_up=Pool(
        train=(
            "Ordena estos números de menor a mayor: {l}",
            "Ordena de menor a mayor: {l}",
            "Pon {l} en orden ascendente.",
            "Por favor, ordena {l} de menor a mayor.",
            "Ordena {l} en orden ascendente.",
            "Escribe de menor a mayor: {l}",
        ),
        heldout=("Por favor, pon {l} de menor a mayor.", "Escribe estos números en orden ascendente: {l}"),
    ),
    sort_down=Pool(
        train=(
            "Ordena estos números de mayor a menor: {l}",
            "Ordena de mayor a menor: {l}",
            "Pon {l} en orden descendente.",
            "Por favor, ordena {l} de mayor a menor.",
            "Ordena {l} en orden descendente.",
            "Escribe de mayor a menor: {l}",
        ),
        heldout=("Por favor, pon {l} de mayor a menor.", "Escribe estos números en orden descendente: {l}"),
    ),
    kth_small=Pool(
        train=(
            "¿Cuál es el {k} número más pequeño de {l}?",
            "Halla el {k} número más pequeño: {l}",
            "Entre {l}, ¿cuál es el {k} número más pequeño?",
            "Estos son los números: {l}. ¿Cuál es el {k} número más pequeño?",
            "Dime el {k} número más pequeño: {l}",
        ),
        heldout=(
            "Estos son los números: {l}. Halla el {k} número más pequeño.",
            "Entre {l}, halla el {k} número más pequeño.",
        ),
    ),
    kth_large=Pool(
        train=(
            "¿Cuál es el {k} número más grande de {l}?",
            "Halla el {k} número más grande: {l}",
            "Entre {l}, ¿cuál es el {k} número más grande?",
            "Estos son los números: {l}. ¿Cuál es el {k} número más grande?",
            "Dime el {k} número más grande: {l}",
        ),
        heldout=(
            "Estos son los números: {l}. Halla el {k} número más grande.",
            "Entre {l}, halla el {k} número más grande.",
        ),
    ),
    median=Pool(
        train=(
            "¿Cuál es la mediana de {l}?",
            "Halla la mediana: {l}",
            "Entre {l}, ¿cuál es la mediana?",
            "Estos son los números: {l}. ¿Cuál es la mediana?",
            "¿Qué número es la mediana de {l}?",
        ),
        heldout=("Estos son los números: {l}. Halla la mediana.", "Entre {l}, ¿qué número es la mediana?"),
    ),
    ordinals=("primer", "segundo", "tercer", "cuarto"),
    after=Pool(
        train=(
            "Hoy es {d}. ¿Qué día será dentro de {n} días?",
            "Si hoy es {d}, ¿qué día de la semana será dentro de {n} días?",
            "¿Qué día de la semana es {n} días después del {d}?",
            "Hoy es {d}. ¿Qué día será {n} días después?",
            "¿Qué día viene {n} días después del {d}?",
            "Hoy es {d}. ¿Qué día de la semana será en {n} días?",
        ),
        heldout=(
            "Si hoy es {d}, ¿qué día será en {n} días?",
            "Hoy es {d}. ¿Qué día de la semana será {n} días después?",
            "Si hoy es {d}, ¿qué día viene {n} días después?",
        ),
    ),
    before=Pool(
        train=(
            "Hoy es {d}. ¿Qué día fue hace {n} días?",
            "Si hoy es {d}, ¿qué día de la semana fue hace {n} días?",
            "¿Qué día de la semana es {n} días antes del {d}?",
            "Hoy es {d}. ¿Qué día fue {n} días antes?",
            "¿Qué día viene {n} días antes del {d}?",
            "Hoy es {d}. ¿Qué día de la semana era hace {n} días?",
        ),
        heldout=(
            "Si hoy es {d}, ¿qué día era hace {n} días?",
            "Hoy es {d}. ¿Qué día de la semana fue {n} días antes?",
            "Si hoy es {d}, ¿qué día fue {n} días antes?",
        ),
    ),
    after_twice=Pool(
        train=(
            "Hoy es {d}. El examen es en {n} días, y el viaje es {m} días después del examen. ¿Qué día es el viaje?",
            "Hoy es {d}. En {n} días empieza el trabajo, y termina {m} días después. ¿Qué día termina?",
            "Si pasan {n} días desde el {d}, y luego {m} días más, ¿qué día es?",
            "Si hoy es {d}, ¿qué día será {n} días y luego {m} días después?",
        ),
        heldout=(
            "Hoy es {d}. En {n} días empieza el viaje, y termina {m} días después. ¿Qué día termina?",
            "Si hoy es {d} y pasan {n} días, y luego {m} días más, ¿qué día es?",
        ),
    ),
    forward="Después",
    back="Antes",
)
